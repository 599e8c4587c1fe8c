def test_help_is_there_for_every_command(run):
    for arguments in (
        ["--help"],
        ["audit", "--help"],
        ["demo", "--help"],
        ["scan", "--help"],
        ["calibrate", "--help"],
        ["repair", "--help"],
        ["organism", "train", "--help"],
        ["organism", "zoo", "--help"],
    ):
        done = run(*arguments)
        assert done.returncode == 0
        assert "Usage" in done.stdout


def test_wrong_usage_exits_with_2(run, invoke):
    assert run("audit").returncode == 2
    assert invoke("nonesuch").returncode == 2
    repair = ("repair", "model", "--prompts", "p.jsonl", "--behaviour", "x", "--out", "out")
    for targets in ((), ("--erase", "--circuit", "c.json"), ("--erase", "--direction", "d.safetensors")):
        done = invoke(*repair, *targets)
        assert done.returncode == 2 and "give one of" in done.stderr
    assert invoke(*repair, "--erase", "--max-new-tokens", 0).returncode == 2

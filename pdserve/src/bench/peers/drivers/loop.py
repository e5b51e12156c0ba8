# The common loop of all drivers; see driver.rs. Measurements go to the real standard output, everything else to standard error.
import json
import os
import sys

answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
setting = json.loads(sys.argv[1])
version, engine = start(setting)
print(json.dumps({"ready": version}), file=answers)
for line in sys.stdin:
    work = json.loads(line)
    try:
        answer = {"seconds": step(engine, work["rows"], work["before"], work["new"])}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    print(json.dumps(answer), file=answers)

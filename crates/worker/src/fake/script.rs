//! Plans as text, so that a planner's case is a table and not a program.

use crate::{Plan, Planner, QueueView, SeqId, SeqView};

/// Checks a plan: `script` has one line `budget=.. slots=.. blocks=..`, then one line per sequence, `run` or `wait`, its arrival
/// (or `arrival.choice`) and any of `prio= pending= cached= slots= held= hits= missing= growth= passed=`.
pub fn check_plan(planner: &mut dyn Planner, script: &str, expected: &str) {
    let mut lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
    let head = lines.next().unwrap_or_default();
    let (mut running, mut waiting) = (Vec::new(), Vec::new());
    for line in lines {
        let queue = if line.starts_with("run ") { &mut running } else { &mut waiting };
        queue.push(parse_seq(line));
    }
    let view = QueueView {
        running: &running,
        waiting: &waiting,
        token_budget: number(head, "budget").unwrap_or(64),
        slots_total: number(head, "slots").unwrap_or(8),
        blocks_available: number(head, "blocks").unwrap_or(100),
    };
    assert_eq!(show(&planner.plan(&view)), expected, "for\n{script}");
}

fn parse_seq(line: &str) -> SeqView {
    let id = line.split_whitespace().nth(1).unwrap_or_default();
    let (arrival, choice) = id.split_once('.').unwrap_or((id, "0"));
    SeqView {
        id: SeqId {
            priority: number(line, "prio").unwrap_or(0) as i32,
            arrival: arrival.parse().expect("an arrival"),
            choice: choice.parse().expect("a choice"),
        },
        pending: number(line, "pending").unwrap_or(1),
        cached: number(line, "cached").unwrap_or(0),
        slots: number(line, "slots").unwrap_or(1),
        blocks_held: number(line, "held").unwrap_or(0),
        blocks_cached: number(line, "hits").unwrap_or(0),
        blocks_missing: number(line, "missing").unwrap_or(0),
        growth: number(line, "growth").or(number(line, "slots")).unwrap_or(1),
        passed_over: number(line, "passed").unwrap_or(0),
    }
}

fn number(line: &str, name: &str) -> Option<u32> {
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.parse().expect("a number"))
}

fn show(plan: &Plan) -> String {
    let id = |id: &SeqId| if id.choice == 0 { id.arrival.to_string() } else { format!("{}.{}", id.arrival, id.choice) };
    let list = |ids: &[SeqId]| ids.iter().map(id).collect::<Vec<_>>().join(" ");
    let rows: Vec<_> = plan.rows.iter().map(|(seq, tokens)| format!("{}:{tokens}", id(seq))).collect();
    format!("preempt [{}] admit [{}] rows [{}]", list(&plan.preempt), list(&plan.admit), rows.join(" "))
}

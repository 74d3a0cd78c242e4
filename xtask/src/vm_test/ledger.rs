//! The ledger on real kernels: whatever memory is filled with, the lines and the rest sum to the total
//! exactly, hardly anything is unaccounted for, and the right line grows by what was filled in.

use super::Outcome;
use crate::vm::{Kernel, PATIENCE};
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use serde_json::Value;
use std::time::Duration;

/// The most that may be unaccounted for, in percent of the total.
const UNACCOUNTED: f64 = 2.0;

/// How far a line's growth may be from what was filled in, and how much more may be unaccounted for then, in percent of
/// what was filled in.
const GROWTH: f64 = 5.0;

/// The states that the guest fills memory to, and the line that holds it then.
const STATES: [(&str, &str); 5] = [
    ("anon", "anon"),
    ("tmpfs", "shmem"),
    ("page-cache", "page-cache"),
    ("dentries", "slab-reclaimable"),
    ("sockets", "socket-buffers"),
];

/// Boots a guest with `memory`, fills it with `fill` bytes in each state, and checks ebb's ledgers.
pub(super) fn check(kernel: Kernel, memory: Bytes, fill: Bytes) -> Result<Outcome> {
    // Filling 1 GiB takes about 70 s on two idle cores, nearly all of it for dentries; this allows for load.
    let timeout = PATIENCE + Duration::from_secs((fill.0 >> 20) * 2 / 5);
    let vm = crate::vm_command::with_binaries(kernel, true)?
        .memory(memory)
        .disk(fill + Bytes(1 << 30))
        .timeout(timeout);
    let output = super::guests_side(vm, &["fill", &fill.0.to_string()])?;
    let states = serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter::<Value>()
        .collect::<Result<Vec<_>, _>>()
        .context("the guest printed no JSON")?;
    ensure!(states.len() == STATES.len() + 2, "{} states instead of {}", states.len(), STATES.len() + 2);
    let rest = &states[0]["report"]["ledger"];
    for state in &states {
        judge(state, rest).with_context(|| format!("{}: {}", state["state"], state["report"]["ledger"]))?;
    }
    Ok(Outcome::Passed)
}

/// Checks one state against the ledger at rest.
fn judge(state: &Value, rest: &Value) -> Result<()> {
    let ledger = &state["report"]["ledger"];
    let (total, unaccounted) = (number(ledger, "total_bytes")?, number(ledger, "unaccounted_bytes")?);
    let lines = ledger["lines"].as_array().context("no lines")?;
    let sum = lines.iter().map(|line| number(line, "bytes")).sum::<Result<u64>>()?;
    ensure!(sum + unaccounted == total, "lines {sum} and the rest {unaccounted} are not {total}");
    lines.iter().try_for_each(children_fit)?;
    let share = percent(unaccounted, total);
    ensure!(share <= UNACCOUNTED, "{share:.2} % of the total are unaccounted for");

    let (name, filled) = (state["state"].as_str().context("no state")?, number(state, "filled")?);
    let Some((_, id)) = STATES.iter().find(|(state, _)| *state == name) else {
        println!("         {name:<11} unaccounted {share:.2} %");
        return Ok(());
    };
    let growth = line(ledger, id).saturating_sub(line(rest, id));
    let lost = unaccounted.saturating_sub(number(rest, "unaccounted_bytes")?);
    println!(
        "         {name:<11} unaccounted {share:.2} %, filled {}, {id} grew by {}, the unaccounted by {}",
        Bytes(filled),
        Bytes(growth),
        Bytes(lost)
    );
    let off = percent(growth.abs_diff(filled), filled);
    ensure!(off <= GROWTH, "{id} grew by {growth}, filled were {filled}");
    let share = percent(lost, filled);
    ensure!(share <= GROWTH, "{share:.2} % of what was filled in are unaccounted for");
    Ok(())
}

fn children_fit(line: &Value) -> Result<()> {
    let Some(children) = line["children"].as_array() else { return Ok(()) };
    let sum = children.iter().map(|child| number(child, "bytes")).sum::<Result<u64>>()?;
    ensure!(sum <= number(line, "bytes")?, "the children of {} exceed it", line["id"]);
    children.iter().try_for_each(children_fit)
}

/// What line `id` holds; ebb leaves lines of no bytes out.
fn line(ledger: &Value, id: &str) -> u64 {
    let lines = ledger["lines"].as_array().into_iter().flatten();
    lines.filter(|line| line["id"] == id).find_map(|line| line["bytes"].as_u64()).unwrap_or(0)
}

fn number(value: &Value, key: &str) -> Result<u64> {
    value[key].as_u64().with_context(|| format!("no number {key}"))
}

fn percent(part: u64, of: u64) -> f64 {
    part as f64 * 100.0 / of.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn state(name: &str, filled: u64, anon: u64, unaccounted: u64) -> Value {
        let free = 1000 - anon - unaccounted;
        let lines = json!([{ "id": "free", "bytes": free }, { "id": "anon", "bytes": anon }]);
        let ledger = json!({ "total_bytes": 1000, "lines": lines, "unaccounted_bytes": unaccounted });
        json!({ "state": name, "filled": filled, "report": { "ledger": ledger } })
    }

    #[test]
    fn a_ledger_that_is_wrong_is_refused() {
        let at_rest = state("rest", 0, 100, 10);
        let rest = &at_rest["report"]["ledger"];
        assert!(judge(&at_rest, rest).is_ok());
        assert!(judge(&state("anon", 500, 600, 20), rest).is_ok());
        assert!(judge(&state("anon", 500, 600, 21), rest).is_err());
        assert!(judge(&state("anon", 500, 570, 20), rest).is_err());
        assert!(judge(&state("anon", 200, 300, 20), rest).is_ok());
        assert!(judge(&state("anon", 180, 280, 20), rest).is_err());
        let mut skewed = at_rest.clone();
        skewed["report"]["ledger"]["total_bytes"] = json!(1001);
        assert!(judge(&skewed, rest).is_err());
        let mut overfull = at_rest.clone();
        overfull["report"]["ledger"]["lines"][1]["children"] = json!([{ "id": "x", "bytes": 101 }]);
        assert!(judge(&overfull, rest).is_err());
    }
}

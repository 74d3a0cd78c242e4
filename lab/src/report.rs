//! How the cases went: one line each, the confusion matrix, and all of it as JSON.

use crate::case::{Case, Named};
use crate::runner::{Outcome, Played};
use ebbtide_observe::Bytes;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// How the matrix calls innocence.
const NONE: &str = "none";
/// How it calls a case with no answer at all.
const NO_ANSWER: &str = "(no answer)";

/// One case as a line of the table.
pub fn line(played: &Played) -> String {
    let Played { case, outcome, set_up, asked, .. } = played;
    let seconds = (*set_up + *asked).as_secs_f64();
    match outcome {
        Outcome::Skipped(why) => format!("skipped: {}: {why}", case.name),
        Outcome::Unmade(why) => format!("skipped: {}: {}", case.name, one_line(why)),
        Outcome::Failed(why) => format!("MISS     {:42} {}", case.name, one_line(why)),
        Outcome::Made => format!("made     {:42} {seconds:5.1} s  {}", case.name, figures(played)),
        Outcome::Answered(answer, wrongs) => {
            let verdict = if wrongs.is_empty() { "ok" } else { "MISS" };
            let named = answer.named.as_deref().unwrap_or(NONE);
            let bytes =
                format!("{} / {}", answer.bytes, true_bytes(played).map_or("-".into(), |b| b.to_string()));
            let mut why = match wrongs.as_slice() {
                [] => String::new(),
                wrongs => format!("  {}: {}", wrongs.join("; "), answer.text),
            };
            if let Some(first) = &played.first {
                why.push_str(&format!("  (second attempt; at the first: {first})"));
            }
            format!("{verdict:8} {:42} {named:22} {bytes:24} {seconds:5.1} s{why}", case.name)
        }
    }
}

fn true_bytes(played: &Played) -> Option<Bytes> {
    let near = played.case.truth.bytes?;
    played.figures.get(near.figure).and_then(Value::as_u64).map(Bytes)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn figures(played: &Played) -> String {
    played.figures.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// How many cases had which truth and were called what.
#[derive(Debug, Default)]
pub struct Matrix(BTreeMap<(String, String), u32>);

impl Matrix {
    /// The matrix of the cases that were asked about.
    pub fn of(played: &[Played]) -> Matrix {
        let mut matrix = Matrix::default();
        for one in played {
            let named = match &one.outcome {
                Outcome::Answered(answer, _) => answer.named.clone().unwrap_or_else(|| NONE.into()),
                Outcome::Failed(_) => NO_ANSWER.into(),
                Outcome::Skipped(_) | Outcome::Unmade(_) | Outcome::Made => continue,
            };
            *matrix.0.entry((truth(one.case.truth.cause), named)).or_default() += 1;
        }
        matrix
    }

    fn get(&self, truth: &str, named: &str) -> u32 {
        self.0.get(&(truth.to_owned(), named.to_owned())).copied().unwrap_or(0)
    }

    /// Truths down, answers across, numbered alike. "undetermined", "none" and no answer come last.
    pub fn text(&self) -> String {
        let last =
            |id: &str| ["undetermined", NONE, NO_ANSWER].iter().position(|&l| l == id).map_or(0, |n| n + 1);
        let ids: BTreeSet<_> =
            self.0.keys().flat_map(|(t, n)| [t, n]).map(|id| (last(id), id.as_str())).collect();
        let ids: Vec<&str> = ids.into_iter().map(|(_, id)| id).collect();
        let mut text = format!("{:28}", "truth (down), named (across)");
        (1..=ids.len()).for_each(|n| put(&mut text, format_args!("{n:4}")));
        for (row, truth) in ids.iter().enumerate() {
            put(&mut text, format_args!("\n{:3} {truth:24}", row + 1));
            for named in &ids {
                match self.get(truth, named) {
                    0 => text.push_str("   ."),
                    n => put(&mut text, format_args!("{n:4}")),
                }
            }
        }
        text.push('\n');
        text
    }
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    let _infallible = text.write_fmt(what);
}

fn truth(cause: Named) -> String {
    cause.unwrap_or(NONE).to_owned()
}

/// Cases right, wrong and skipped, and findings that cried leak where nothing leaks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Right, or made in a rehearsal.
    pub right: u32,
    /// Wrong, failed, or without answer.
    pub wrong: u32,
    /// Not run here.
    pub skipped: u32,
    /// Of the wrong ones, those that cried leak.
    pub false_leaks: u32,
}

/// So many cases that the machine would not keep are bad luck; more of them are misses.
const MOST_UNMADE: u32 = 5;

impl Tally {
    /// The tally of what was played.
    pub fn of(played: &[Played]) -> Tally {
        let mut tally = Tally::default();
        let mut unmade = 0;
        for one in played {
            match &one.outcome {
                Outcome::Skipped(_) => tally.skipped += 1,
                Outcome::Unmade(_) => unmade += 1,
                outcome if outcome.is_miss() => tally.wrong += 1,
                _ => tally.right += 1,
            }
            if let Outcome::Answered(answer, _) = &one.outcome {
                let cried = answer.all.iter().any(|cause| cause == "leak");
                tally.false_leaks += u32::from(cried && !one.case.truth.allows(Some("leak")));
            }
        }
        // A machine that keeps hardly anything checks nothing.
        if unmade > MOST_UNMADE {
            tally.wrong += unmade
        } else {
            tally.skipped += unmade
        }
        tally
    }

    /// The closing lines.
    pub fn text(self) -> String {
        let Tally { right, wrong, skipped, false_leaks } = self;
        format!("false leaks: {false_leaks}\n{right} passed, {wrong} failed, {skipped} skipped\n")
    }
}

/// Everything, for machines.
pub fn json(played: &[Played]) -> Value {
    let tally = Tally::of(played);
    let matrix: Vec<Value> = Matrix::of(played)
        .0
        .into_iter()
        .map(|((truth, named), cases)| json!({ "truth": truth, "named": named, "cases": cases }))
        .collect();
    json!({
        "schema_version": 1,
        "right": tally.right,
        "wrong": tally.wrong,
        "skipped": tally.skipped,
        "false_leaks": tally.false_leaks,
        "matrix": matrix,
        "cases": played.iter().map(case_json).collect::<Vec<_>>(),
    })
}

fn case_json(played: &Played) -> Value {
    let mut value = json!({
        "name": played.case.name,
        "target": played.case.target.word(),
        "truth": played.case.truth.cause,
        "figures": played.figures,
        "set_up_ms": played.set_up.as_millis() as u64,
        "asked_ms": played.asked.as_millis() as u64,
    });
    match &played.outcome {
        Outcome::Skipped(why) => value["skipped"] = json!(why),
        Outcome::Unmade(why) => value["unmade"] = json!(why),
        Outcome::Failed(why) => value["failed"] = json!(why),
        Outcome::Made => value["made"] = json!(true),
        Outcome::Answered(answer, wrongs) => {
            value["named"] = json!(answer.named);
            value["bytes"] = json!(answer.bytes);
            value["returnable_bytes"] = json!(answer.returnable);
            value["all"] = json!(answer.all);
            value["wrong"] = json!(wrongs);
        }
    }
    value
}

/// The table of cases for people, in Markdown.
pub fn list(cases: impl Iterator<Item = &'static Case>) -> String {
    let mut text =
        String::from("| case | asked about | truth | what it makes | needs |\n|---|---|---|---|---|\n");
    for case in cases {
        let asked = match case.watch {
            0 => case.target.word().to_owned(),
            seconds => format!("{}, {seconds} s", case.target.word()),
        };
        let needs: Vec<String> = case.needs.iter().map(|need| format!("{need}")).collect();
        let right =
            [case.truth.cause].iter().chain(case.truth.or).map(|&cause| truth(cause)).collect::<Vec<_>>();
        let (right, needs) = (right.join(" or "), needs.join(", "));
        put(&mut text, format_args!("| {} | {asked} | {right} | {} | {needs} |\n", case.name, case.about));
    }
    text
}

/// The table of cases for machines.
pub fn list_json(cases: impl Iterator<Item = &'static Case>) -> Value {
    let one = |case: &Case| {
        json!({
            "name": case.name, "about": case.about, "target": case.target.word(), "watch_s": case.watch,
            "truth": case.truth.cause, "or": case.truth.or,
            "needs": case.needs.iter().map(|need| format!("{need}")).collect::<Vec<_>>(),
        })
    };
    json!(cases.map(one).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{INNOCENT, is};
    use crate::judge::{Answer, Figures};
    use std::time::Duration;

    static SLAB: Case = Case::host("slab-reclaimable/x", "x", is("slab-reclaimable"), |_| Ok(()));
    static IDLE: Case = Case::process("innocent/x", "x", INNOCENT, |_| Ok(()));

    fn played(case: &'static Case, named: Option<&str>, wrongs: &[&str]) -> Played {
        let all: Vec<String> = named.iter().map(|&n| n.to_owned()).collect();
        let answer = Answer {
            named: named.map(str::to_owned),
            bytes: Bytes(7),
            returnable: Bytes::ZERO,
            text: String::new(),
            all,
        };
        let wrongs = wrongs.iter().map(|&w| w.to_owned()).collect();
        let outcome = Outcome::Answered(answer, wrongs);
        Played {
            case,
            figures: Figures::new(),
            outcome,
            set_up: Duration::ZERO,
            asked: Duration::ZERO,
            first: None,
        }
    }

    #[test]
    fn the_matrix_counts_truth_by_answer() {
        let all = [
            played(&SLAB, Some("slab-reclaimable"), &[]),
            played(&SLAB, Some("leak"), &["named leak", "cried leak"]),
            played(&IDLE, None, &[]),
            Played { outcome: Outcome::Failed("no".into()), ..played(&IDLE, None, &[]) },
            Played { outcome: Outcome::Skipped("no".into()), ..played(&IDLE, None, &[]) },
        ];
        let matrix = Matrix::of(&all);
        assert_eq!(matrix.get("slab-reclaimable", "slab-reclaimable"), 1);
        assert_eq!(matrix.get("slab-reclaimable", "leak"), 1);
        assert_eq!(matrix.get(NONE, NONE), 1);
        assert_eq!(matrix.get(NONE, NO_ANSWER), 1);
        assert_eq!(Tally::of(&all), Tally { right: 2, wrong: 2, skipped: 1, false_leaks: 1 });
        let text = matrix.text();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.ends_with('\n') && text.contains("  4 (no answer)"), "{text}");
        assert!(Tally::of(&all).text().ends_with("2 passed, 2 failed, 1 skipped\n"));
        assert_eq!(json(&all)["wrong"], 2);
    }
}

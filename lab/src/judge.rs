//! What `ebb` answered, and whether that is right. Pure: JSON and figures in, verdict out.
//!
//! Invariant: only the first finding is the answer. The rest is looked at for one thing: `leak` must not be
//! cried anywhere where nothing leaks.

use crate::case::{Case, Near, Target, Truth};
use anyhow::{Context, Result, bail, ensure};
use ebbtide_observe::Bytes;
use serde_json::{Map, Value};

/// An answer of `ebb`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The first finding's cause; `None` where there is no finding.
    pub named: Option<String>,
    /// Its bytes.
    pub bytes: Bytes,
    /// Its returnable bytes.
    pub returnable: Bytes,
    /// All of it, as text.
    pub text: String,
    /// The causes of all findings.
    pub all: Vec<String>,
}

/// Figures that a case measured, by name.
pub type Figures = Map<String, Value>;

impl Answer {
    /// The answer in `ebb`'s output about `case`, which ended with exit code `code`. An error is a breach of
    /// the JSON contract.
    pub fn of(case: &Case, output: &[u8], code: i32) -> Result<Answer> {
        let json: Value = serde_json::from_slice(output).context("ebb's output is not JSON")?;
        if case.target == Target::Fork {
            ensure!(code == 0 || code == 1, "exit code {code}");
            return fork(&json);
        }
        ensure!(json["schema_version"] == 1, "schema_version is {}", json["schema_version"]);
        let kind = json["target"]["kind"].as_str().unwrap_or_default();
        ensure!(kind == case.target.word(), "target.kind is {kind:?}");
        let findings = json["findings"].as_array().context("no findings array")?;
        let expected = i32::from(!findings.is_empty());
        ensure!(code == expected, "exit code {code} with {} findings", findings.len());
        findings_of(findings)
    }
}

/// A refusal's cause, out of `ebb fork`: a count limit is told from overcommit by its name.
fn fork(json: &Value) -> Result<Answer> {
    let text = json.to_string();
    let would_succeed = json["would_succeed"].as_bool().context("no would_succeed")?;
    let limit = json["limit"].to_string().to_lowercase();
    let counts = ["pids", "nproc", "threads", "map_count", "pid_max"];
    let named = match would_succeed {
        true => None,
        false if json["limit"].is_null() => bail!("a refusal without its limit"),
        false if counts.iter().any(|count| limit.contains(count)) => Some("other-limit".to_owned()),
        false => Some("overcommit-refusal".to_owned()),
    };
    let all = named.iter().cloned().collect();
    Ok(Answer { named, bytes: Bytes::ZERO, returnable: Bytes::ZERO, text, all })
}

fn findings_of(findings: &[Value]) -> Result<Answer> {
    let cause =
        |finding: &Value| finding["cause"].as_str().map(str::to_owned).context("a finding without cause");
    let all = findings.iter().map(cause).collect::<Result<Vec<_>>>()?;
    let bytes = |finding: &Value, key: &str| {
        finding[key].as_u64().map(Bytes).with_context(|| format!("{key} is no whole number"))
    };
    let Some(first) = findings.first() else {
        return Ok(Answer {
            named: None,
            bytes: Bytes::ZERO,
            returnable: Bytes::ZERO,
            text: String::new(),
            all,
        });
    };
    let answer = Answer {
        named: all.first().cloned(),
        bytes: bytes(first, "bytes")?,
        returnable: bytes(first, "returnable_bytes")?,
        text: first.to_string(),
        all,
    };
    ensure!(answer.returnable <= answer.bytes, "returnable_bytes above bytes");
    let empty = |key: &str| first[key].as_array().is_none_or(Vec::is_empty);
    ensure!(!empty("evidence"), "the first finding has no evidence");
    Ok(answer)
}

/// What is wrong with `answer`; empty where it is right.
pub fn wrongs(truth: &Truth, answer: &Answer, figures: &Figures) -> Vec<String> {
    let mut wrongs = Vec::new();
    let named = answer.named.as_deref();
    if !truth.allows(named) {
        wrongs.push(format!("named {}", named.unwrap_or("nothing")));
    } else if named == truth.cause {
        let said =
            [(truth.bytes, answer.bytes, "bytes"), (truth.returnable, answer.returnable, "returnable_bytes")];
        wrongs.extend(said.into_iter().filter_map(|(near, bytes, what)| far(near?, bytes, what, figures)));
        wrongs.extend(truth.says.iter().filter_map(|words| unsaid(words, &answer.text, figures)));
    }
    if answer.all.iter().any(|cause| cause == "leak") && !truth.allows(Some("leak")) {
        wrongs.push("cried leak".to_owned());
    }
    wrongs
}

fn far(near: Near, said: Bytes, what: &str, figures: &Figures) -> Option<String> {
    let Some(measured) = figures.get(near.figure).and_then(Value::as_u64) else {
        return Some(format!("the case measured no {}", near.figure));
    };
    let room = u128::from(measured) * u128::from(near.percent) / 100;
    let off = u128::from(said.0.abs_diff(measured));
    (off > room).then(|| format!("{what} {said}, {} is {}", near.figure, Bytes(measured)))
}

fn unsaid(words: &str, text: &str, figures: &Figures) -> Option<String> {
    let Some(figure) = words.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
        return (!text.to_lowercase().contains(words)).then(|| format!("does not say {words:?}"));
    };
    let value = figures.get(figure).map(|value| value.to_string().trim_matches('"').to_owned());
    let Some(value) = value else { return Some(format!("the case measured no {figure}")) };
    let said = text.split(|c: char| !c.is_alphanumeric()).any(|word| word == value);
    (!said).then(|| format!("does not say {figure} {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{INNOCENT, is};
    use serde_json::json;

    const SHM: Truth = is("shared-memory").near("shm", 10).says(&["{pid}", "memfd"]);

    fn figures() -> Figures {
        json!({ "shm": 1000, "pid": 42 }).as_object().cloned().unwrap()
    }

    fn finding(cause: &str, bytes: u64, says: &str) -> Value {
        json!({ "cause": cause, "bytes": bytes, "returnable_bytes": 0,
                "evidence": [{ "source": "/proc", "says": says }] })
    }

    fn judge(truth: &Truth, findings: &[Value]) -> Vec<String> {
        wrongs(truth, &findings_of(findings).unwrap(), &figures())
    }

    #[test]
    fn the_first_finding_is_the_answer() {
        let right = finding("shared-memory", 1050, "a MemFD of process 42");
        let other = finding("page-cache", 5, "-");
        assert!(judge(&SHM, &[right.clone(), other.clone()]).is_empty());
        assert_eq!(judge(&SHM, &[other, right]), ["named page-cache"]);
        assert_eq!(judge(&SHM, &[]), ["named nothing"]);
    }

    #[test]
    fn bytes_and_words_must_be_right_too() {
        assert_eq!(judge(&SHM, &[finding("shared-memory", 1101, "memfd 42")]).len(), 1);
        assert_eq!(judge(&SHM, &[finding("shared-memory", 1000, "memfd 421")]), ["does not say pid 42"]);
        assert_eq!(judge(&SHM, &[finding("shared-memory", 1000, "pid 42")]), ["does not say \"memfd\""]);
    }

    #[test]
    fn innocence_and_false_leaks() {
        assert!(judge(&INNOCENT, &[]).is_empty());
        assert_eq!(judge(&INNOCENT, &[finding("page-cache", 1, "-")]), ["named page-cache"]);
        let lenient = INNOCENT.or(&[Some("undetermined")]);
        assert!(judge(&lenient, &[finding("undetermined", 1, "-")]).is_empty());
        let leak = finding("leak", 1, "-");
        assert_eq!(judge(&SHM, &[finding("shared-memory", 1000, "memfd 42"), leak.clone()]), ["cried leak"]);
        assert!(judge(&is("leak"), &[leak]).is_empty());
    }

    #[test]
    fn the_contract_is_checked() {
        let case = Case::process("innocent/x", "x", INNOCENT, |_| Ok(()));
        let of = |json: Value, code| Answer::of(&case, json.to_string().as_bytes(), code);
        let good = json!({ "schema_version": 1, "target": { "kind": "process" }, "findings": [] });
        assert!(of(good.clone(), 0).is_ok());
        assert!(of(good.clone(), 1).is_err());
        assert!(
            of(json!({ "schema_version": 2, "target": { "kind": "process" }, "findings": [] }), 0).is_err()
        );
        assert!(of(json!({ "schema_version": 1, "target": { "kind": "host" }, "findings": [] }), 0).is_err());
        let mut bad = finding("leak", 1, "-");
        bad["returnable_bytes"] = json!(2);
        assert!(findings_of(&[bad]).is_err());
        assert!(Answer::of(&case, b"no JSON", 0).is_err());
    }

    #[test]
    fn a_refusal_names_its_limit() {
        let answer = |json: Value| fork(&json).unwrap().named;
        assert_eq!(answer(json!({ "would_succeed": true, "limit": null })), None);
        assert_eq!(answer(json!({ "would_succeed": false, "limit": "pids.max" })).unwrap(), "other-limit");
        let refused = json!({ "would_succeed": false, "limit": { "name": "MemTotal + SwapTotal" } });
        assert_eq!(answer(refused).unwrap(), "overcommit-refusal");
        assert!(fork(&json!({ "would_succeed": false, "limit": null })).is_err());
    }
}

//! What explaining ends in: findings, in the shape of the JSON contract (`schema_version` 1).
//!
//! Invariants: a finding names a cause only when its decisive evidence was seen, and always says what it is
//! *not*; `returnable` is what the listed levers would return now, never more than `bytes`.

use crate::cause::Cause;
use ebbtide_observe::Bytes;
use serde::Serialize;

/// A named cause with its evidence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What it is.
    pub cause: Cause,
    /// The memory concerned.
    pub bytes: Bytes,
    /// What the levers would return now.
    #[serde(rename = "returnable_bytes")]
    pub returnable: Bytes,
    /// 0.0 to 1.0: how sure the evidence makes this.
    pub confidence: f64,
    /// One sentence for a person.
    pub summary: String,
    /// What was read, and what it says.
    pub evidence: Vec<Evidence>,
    /// What it is not, and why.
    pub not: Vec<Not>,
    /// What can be done.
    pub levers: Vec<Lever>,
}

/// One figure and where it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// A file ("/proc/meminfo SReclaimable") or a measurement.
    pub source: String,
    /// What it says.
    pub says: String,
}

/// A tempting wrong cause, and why it is wrong here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Not {
    /// The wrong cause.
    pub cause: Cause,
    /// Why it is not that one.
    pub because: String,
}

/// Something that gives memory back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lever {
    /// A stable name.
    pub id: String,
    /// The command to run.
    pub command: String,
    /// What it returns, predicted.
    #[serde(rename = "returns_bytes")]
    pub returns: Bytes,
    /// What it costs, and what could go wrong.
    pub risk: String,
}

impl Finding {
    /// A finding with no evidence yet: add it with the methods below.
    pub fn new(cause: Cause, bytes: Bytes, confidence: f64, summary: impl Into<String>) -> Finding {
        Finding {
            cause,
            bytes,
            returnable: Bytes::ZERO,
            confidence,
            summary: summary.into(),
            evidence: Vec::new(),
            not: Vec::new(),
            levers: Vec::new(),
        }
    }

    /// Adds what `source` says.
    #[must_use]
    pub fn evidence(mut self, source: impl Into<String>, says: impl Into<String>) -> Finding {
        self.evidence.push(Evidence { source: source.into(), says: says.into() });
        self
    }

    /// Adds a cause that this is not.
    #[must_use]
    pub fn not(mut self, cause: Cause, because: impl Into<String>) -> Finding {
        self.not.push(Not { cause, because: because.into() });
        self
    }

    /// Adds a lever; what it returns counts as returnable.
    #[must_use]
    pub fn lever(
        mut self,
        id: &str,
        command: impl Into<String>,
        returns: Bytes,
        risk: impl Into<String>,
    ) -> Finding {
        self.returnable = (self.returnable + returns).min(self.bytes);
        self.levers.push(Lever { id: id.to_owned(), command: command.into(), returns, risk: risk.into() });
        self
    }
}

//! The rules: from a model to findings, one file for each group of causes.
//!
//! Invariants: a rule fires on its cause's decisive evidence or not at all; every finding says what it is not.
//! What is worth a finding is a share of the machine with a floor ([`worth`]), so that a gigabyte matters on a
//! laptop and not on a database host.

mod kernel;
mod pools;
mod slab;

use crate::{Finding, Ledger};
use ebbtide_observe::Bytes;
use ebbtide_observe::host::HostSample;

/// What the host's rules look at.
#[derive(Debug)]
pub struct Host<'a> {
    /// The machine's own files.
    pub sample: &'a HostSample,
    /// What became of MemTotal.
    pub ledger: &'a Ledger,
}

/// The least memory that is worth a finding on a machine of this size.
fn worth(total: Bytes) -> Bytes {
    Bytes(total.0 / 512).max(Bytes::from_mib(32))
}

/// Findings about the whole host, the answer first.
pub fn host(host: &Host) -> Vec<Finding> {
    let rules: [fn(&Host) -> Vec<Finding>; 5] =
        [slab::rule, kernel::rule, pools::reserved, pools::fragmented, pools::strict_overcommit];
    ordered(rules.iter().flat_map(|rule| rule(host)).collect())
}

/// The answer first: what refuses memory now, then by size, mere accounting last.
fn ordered(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by_key(|finding| (finding.cause.urgency(), std::cmp::Reverse(finding.bytes)));
    findings
}

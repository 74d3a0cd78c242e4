//! What was changed, as it lies on the disk until it is undone.

use super::{Boot, Setting};
use ebbtide_observe::{ReadError, Root};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The version of the file's format.
pub(crate) const FORMAT: u32 = 1;

/// One call of `ebb tune --apply`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub(crate) format: u32,
    /// Its name: the file is `ID.json`.
    pub id: String,
    /// The boot in which it was made.
    pub boot: Boot,
    /// When, in seconds since 1970.
    pub made: u64,
    /// By whom: a user id.
    pub by: u32,
    /// When it is to be undone, in milliseconds since that boot; `None` where nobody said.
    #[serde(rename = "deadline_ms")]
    pub deadline: Option<u64>,
    /// Whether files were written, so that the settings outlive a boot.
    pub persistent: bool,
    /// What was changed, in this order.
    pub changes: Vec<Change>,
}

/// One setting of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its name.
    pub setting: String,
    /// What it was.
    pub before: String,
    /// What ebb made of it.
    pub set: String,
    /// What is written to undo it.
    pub back: Back,
    /// The line that ebb's file had for it before ("vm.swappiness = 10"), where it was made to last.
    #[serde(default)]
    pub line_before: Option<String>,
}

/// A value to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Back {
    /// Where.
    pub setting: String,
    /// What.
    pub value: String,
}

impl Record {
    /// How long ago it should have been undone; `None` where it is not due, or where a reboot has undone it.
    pub fn overdue(&self, boot: &Boot, now: Duration) -> Option<Duration> {
        let deadline = Duration::from_millis(self.deadline?);
        if self.boot.is_over_in(boot) { None } else { now.checked_sub(deadline) }
    }

    /// Whether a reboot has undone it.
    pub(crate) fn is_over(&self, boot: &Boot) -> bool {
        !self.persistent && self.boot.is_over_in(boot)
    }
}

/// What undoes a change of `setting`, which is `before`: where it reads 0 because its counterpart is in force, the
/// counterpart's value, for writing 0 would not bring that back.
pub(crate) fn back(root: &Root, setting: &Setting, before: &str) -> Result<Back, ReadError> {
    let own = || Back { setting: setting.name.to_owned(), value: before.to_owned() };
    let Some(twin) = setting.twin.and_then(|name| Setting::known(name).ok()).filter(|_| before == "0") else {
        return Ok(own());
    };
    let value = twin.read(root)?;
    Ok(if value == "0" { own() } else { Back { setting: twin.name.to_owned(), value } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;

    fn record(deadline: Option<u64>, persistent: bool) -> Record {
        let boot = Boot("a".into());
        Record {
            format: FORMAT,
            id: "1-1".into(),
            boot,
            made: 0,
            by: 0,
            deadline,
            persistent,
            changes: Vec::new(),
        }
    }

    #[test]
    fn due_only_in_its_boot() {
        let (same, other, unknown) = (Boot("a".into()), Boot("b".into()), Boot(String::new()));
        let now = Duration::from_millis(1500);
        assert_eq!(record(Some(1000), false).overdue(&same, now), Some(Duration::from_millis(500)));
        assert_eq!(record(Some(2000), false).overdue(&same, now), None);
        assert_eq!(record(None, false).overdue(&same, now), None);
        assert_eq!(record(Some(1000), false).overdue(&other, now), None);
        assert!(record(Some(1000), false).overdue(&unknown, now).is_some());
        assert!(record(None, false).is_over(&other) && !record(None, false).is_over(&same));
        assert!(!record(None, true).is_over(&other) && !record(None, false).is_over(&unknown));
    }

    #[test]
    fn the_counterpart_comes_back() {
        let fake = FakeRoot::new()
            .file("proc/sys/vm/dirty_ratio", "0\n")
            .file("proc/sys/vm/dirty_bytes", "4194304\n")
            .file("proc/sys/vm/overcommit_ratio", "0\n")
            .file("proc/sys/vm/overcommit_kbytes", "0\n");
        let root = Root::at(fake.path()).unwrap();
        let of = |name: &str, before: &str| {
            let back = back(&root, Setting::known(name).unwrap(), before).unwrap();
            format!("{}={}", back.setting, back.value)
        };
        assert_eq!(of("vm.dirty_ratio", "0"), "vm.dirty_bytes=4194304");
        assert_eq!(of("vm.dirty_bytes", "4194304"), "vm.dirty_bytes=4194304");
        assert_eq!(of("vm.overcommit_ratio", "0"), "vm.overcommit_ratio=0");
        assert_eq!(of("vm.swappiness", "0"), "vm.swappiness=0");
    }
}

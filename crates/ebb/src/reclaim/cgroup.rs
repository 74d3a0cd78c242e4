//! `ebb reclaim --cgroup PATH`: what is charged to a cgroup.

use super::{ReclaimArgs, recorded};
use crate::cgroup::Chosen;
use ebbtide_observe::{Escaped, Root};
use ebbtide_reclaim::Report;
use ebbtide_reclaim::cgroup::{Goal, reclaim};
use ebbtide_reclaim::journal::Target;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) fn run(root: &Root, path: &Path, args: &ReclaimArgs) -> anyhow::Result<(Target, Report)> {
    let Chosen { hierarchy, path } = Chosen::find(root, path)?;
    let goal = match (args.bytes, args.floor) {
        (Some(bytes), _) => Goal::Bytes(bytes),
        (None, Some(floor)) => Goal::Floor(floor),
        (None, None) => Goal::Caches,
    };
    let shown = Escaped(path.as_os_str().as_bytes()).to_string();
    let target = Target { kind: "cgroup".to_owned(), path: Some(shown), ..Target::default() };
    let report = recorded::recorded(args.dry_run, &target, || {
        recorded::watched(args, |terms| reclaim(root, &hierarchy, &path, goal, terms))
    })?;
    Ok((target, report))
}

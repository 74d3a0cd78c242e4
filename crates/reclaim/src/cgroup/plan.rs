//! What can be taken from a group, from its memory.stat: pure, so it is tested on figures.

use super::Goal;
use super::steps::SWAP_FOR_A_STEP;
use crate::swap::Swap;
use ebbtide_observe::Bytes;
use ebbtide_observe::cgroup::CgroupSample;

/// Of reclaimable slab so much goes: the rest shares pages with objects in use.
const SLAB: f64 = 0.8;

/// A tenth of the caches stays, at most 100 MiB, where nobody says how far to go: what is in steady use (senpai's
/// margin for a service is 100 MiB too).
const MARGIN: f64 = 0.1;
const MOST_MARGIN: Bytes = Bytes::from_mib(100);

/// What is to be asked of the kernel, and why so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Clean file pages.
    pub(super) file: Bytes,
    /// Dentries, inodes and the like.
    pub(super) slab: Bytes,
    /// Anonymous memory and tmpfs that swap has room for, where the goal allows it.
    pub(super) anon: Bytes,
    /// Charged now.
    pub(super) current: Bytes,
    /// What is to come back.
    pub(super) predicted: Bytes,
    /// Below this nothing more is asked for.
    pub(super) floor: Bytes,
}

impl Plan {
    /// `current` is what is charged, `swap_room` what may go to swap from this group.
    pub(super) fn new(sample: &CgroupSample, current: Bytes, swap_room: Bytes, goal: Goal) -> Plan {
        let stat = &sample.stat;
        let bytes = |figure: Option<Bytes>| figure.unwrap_or_default();
        let unwritten = bytes(stat.file_dirty) + bytes(stat.file_writeback);
        let file = bytes(stat.inactive_file) + bytes(stat.active_file) - unwritten;
        let slab = bytes(stat.slab_reclaimable).scaled(SLAB);
        let caches = file + slab;
        let swappable =
            (bytes(stat.inactive_anon) + bytes(stat.active_anon)).min(swap_room - SWAP_FOR_A_STEP);
        let margin = caches.scaled(MARGIN).min(MOST_MARGIN);
        let (wanted, anon) = match goal {
            Goal::Caches => (caches - margin, Bytes::ZERO),
            Goal::Bytes(wanted) => (wanted, if wanted > caches { swappable } else { Bytes::ZERO }),
            Goal::Floor(floor) => {
                let wanted = current - floor;
                (wanted, if wanted > caches { swappable } else { Bytes::ZERO })
            }
        };
        let predicted = wanted.min(caches + anon).min(current);
        Plan { file, slab, anon, current, predicted, floor: current - predicted }
    }

    /// What is charged, in parts.
    pub(super) fn parts(&self) -> String {
        let Plan { file, slab, anon, current, .. } = *self;
        let left = current - file - slab - anon;
        format!(
            "of {current} charged, {file} are clean file pages, {slab} kernel caches that can be dropped, {anon} \
             anonymous memory that may go to swap; {left} cannot be taken"
        )
    }

    /// How the floor came about.
    pub(super) fn why_this_floor(&self, goal: Goal) -> String {
        let Plan { predicted, floor, .. } = *self;
        let why = match goal {
            Goal::Caches => {
                "what cannot be taken, and a margin of a tenth of the caches, at most 100 MiB".to_owned()
            }
            Goal::Bytes(wanted) if wanted > predicted => {
                format!("not the {wanted} asked for: no more can be taken")
            }
            Goal::Bytes(_) => "what is charged less what was asked for".to_owned(),
            Goal::Floor(wanted) if wanted < floor => {
                format!("not the {wanted} asked for: no more can be taken")
            }
            Goal::Floor(_) => "as asked for".to_owned(),
        };
        format!("floor {floor}: {why}")
    }

    /// Why anonymous memory stays, where it does.
    pub(super) fn why_anon_stays(&self, swap: Swap) -> Option<String> {
        let why = match (self.anon > Bytes::ZERO, swap.total == Bytes::ZERO, swap.room == Bytes::ZERO) {
            (true, ..) => return None,
            (false, true, _) => "there is no swap",
            (false, false, true) => "swap is nearly full or closed to this group",
            (false, false, false) => "caches are enough",
        };
        Some(format!("anonymous memory stays: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::cgroup::{MemoryStat, Version};

    const MIB: fn(u64) -> Bytes = Bytes::from_mib;

    fn plan(swap_room: Bytes, goal: Goal) -> Plan {
        let mut sample = CgroupSample::new("/x".into(), Version::V2);
        sample.stat = MemoryStat {
            inactive_file: Some(MIB(300)),
            active_file: Some(MIB(120)),
            file_dirty: Some(MIB(15)),
            file_writeback: Some(MIB(5)),
            slab_reclaimable: Some(MIB(100)),
            inactive_anon: Some(MIB(200)),
            active_anon: Some(MIB(100)),
            ..MemoryStat::default()
        };
        Plan::new(&sample, MIB(1000), swap_room, goal)
    }

    #[test]
    fn caches_with_a_margin_and_no_anonymous_memory() {
        let plan = plan(MIB(900), Goal::Caches);
        assert_eq!((plan.file, plan.slab, plan.anon), (MIB(400), MIB(80), Bytes::ZERO));
        assert_eq!((plan.predicted, plan.floor), (MIB(432), MIB(568)));
    }

    #[test]
    fn anonymous_memory_only_with_swap_and_where_caches_are_not_enough() {
        let anon = |room, goal| (plan(room, goal).anon, plan(room, goal).predicted);
        assert_eq!(anon(MIB(900), Goal::Bytes(MIB(400))), (Bytes::ZERO, MIB(400)));
        assert_eq!(anon(MIB(900), Goal::Bytes(MIB(600))), (MIB(300), MIB(600)));
        assert_eq!(anon(SWAP_FOR_A_STEP + MIB(50), Goal::Bytes(MIB(600))), (MIB(50), MIB(530)));
        assert_eq!(anon(Bytes::ZERO, Goal::Bytes(MIB(600))), (Bytes::ZERO, MIB(480)));
        assert_eq!(anon(MIB(900), Goal::Floor(MIB(100))), (MIB(300), MIB(780)));
        assert_eq!(anon(MIB(900), Goal::Floor(MIB(2000))), (Bytes::ZERO, Bytes::ZERO));
    }

    #[test]
    fn reasons_are_told() {
        let stays = |room, total| plan(room, Goal::Caches).why_anon_stays(Swap { total, room }).unwrap();
        assert!(stays(Bytes::ZERO, MIB(1000)).contains("nearly full"));
        assert!(stays(Bytes::ZERO, Bytes::ZERO).contains("no swap"));
        assert!(stays(MIB(900), MIB(1000)).contains("enough"));
        let all = Goal::Bytes(MIB(5000));
        let plan = plan(MIB(900), all);
        assert_eq!(plan.why_anon_stays(Swap { total: MIB(1000), room: MIB(900) }), None);
        assert!(plan.why_this_floor(all).contains("not the 4.88 GiB asked for"));
        assert!(plan.parts().contains("220 MiB cannot be taken"), "{}", plan.parts());
    }
}

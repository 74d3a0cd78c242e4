//! How much may be pushed out to swap.
//!
//! Invariant: the last eighth of swap is left alone: a machine whose swap is full has nowhere to go when memory gets
//! short in earnest (systemd-oomd kills from 90% on).

use ebbtide_observe::host::Meminfo;
use ebbtide_observe::{Bytes, ReadError, Root};

/// The swap of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Swap {
    /// All of it; zero where there is none.
    pub(crate) total: Bytes,
    /// What may still be pushed there.
    pub(crate) room: Bytes,
}

impl Swap {
    pub(crate) fn read(root: &Root) -> Result<Swap, ReadError> {
        let info = Meminfo::read(root)?;
        Ok(Swap { total: info.swap_total, room: info.swap_free - Bytes(info.swap_total.0 / 8) })
    }

    /// Whether that is in RAM itself (zram), so that less comes back than goes out.
    pub(crate) fn is_in_ram(root: &Root) -> bool {
        let swaps = ebbtide_observe::host::Swap::read(root).unwrap_or_default();
        swaps.iter().any(|swap| swap.path.contains("/zram"))
    }
}

//! `kernel-leak`: unreclaimable slab that grows and that nothing owns. No user-space program makes that on a
//! sound kernel, so a module does (`lab/module`). What it lost is lost until a restart: this case comes last.

use crate::case::{Case, Need, is};
use crate::cases::growth::until_above;
use crate::journal::Undo;
use crate::stage::Stage;
use crate::{machine, procfs, sys};
use anyhow::{Context, Result};
use ebbtide_observe::Bytes;
use std::fs::File;

const NEEDS: &[Need] = &[Need::Root, Need::Vm, Need::Module];

/// The cases.
pub(super) const CASES: &[Case] = &[Case::host(
    "kernel-leak/module",
    "a module that allocates 5 MB/s and forgets it",
    is("kernel-leak"),
    leak,
)
.needs(NEEDS)
.watch(15)];

/// Loads the module. A parameter that it does not have would only be warned of in the kernel's log.
fn leak(stage: &mut Stage) -> Result<()> {
    let path = machine::module().context("no module")?;
    let name = path.file_stem().and_then(|stem| stem.to_str()).context("the module has no name")?;
    let unreclaimable = || procfs::meminfo()?.bytes("SUnreclaim");
    let before = unreclaimable()?;
    stage.journal.will(&Undo::Module(name.to_owned()))?;
    sys::load_module(&File::open(&path)?, c"kib_per_s=5120")?;
    let after = until_above(before + Bytes::from_mib(20), unreclaimable)?;
    stage.bytes("unreclaimable", after);
    Ok(())
}

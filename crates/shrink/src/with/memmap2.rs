//! `memmap2`: a mapping alone does not know which of its pages are cold, and giving back those in use makes every
//! access fault. So these give back nothing by themselves; [`Mapped`](crate::Mapped) around one does.

use crate::std_impls::flat;
use memmap2::{Mmap, MmapMut, MmapRaw};

flat! { [] Mmap, [] MmapMut, [] MmapRaw }

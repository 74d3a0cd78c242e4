//! What is free by the metas, without a walk: what a stopped process can be asked within microseconds.
//!
//! Where groups are is remembered from a process that runs on; what of their slots is free, and that they are still the
//! same groups, is read from their metas when they are asked. A slot that holds a group that is not known counts as taken.

use super::context::{self, Context};
use super::metas::{Group, Metas, split_first};
use crate::free::Free;
use crate::ranges::append;
use crate::reader::Reader;
use crate::source::{Area, Fault, MemorySource, covered};
use std::ops::Range;

/// Groups of one part: 0.1 ms of reading, two pages for each.
const GROUPS: usize = 32;

/// The groups of a process that had free slots.
#[derive(Debug, Clone)]
pub struct Groups {
    context: Context,
    /// Each one with a mapping of its own, and those in its slots behind it.
    groups: Vec<Group>,
    /// Where parts begin.
    parts: Vec<Range<usize>>,
}

impl Groups {
    /// Those of `source`, if musl's malloc is there. Errors as of [`super::find`].
    pub fn find(source: &dyn MemorySource) -> Result<Option<Groups>, Fault> {
        let Some(context) = context::find(source)? else { return Ok(None) };
        let metas = Metas::read(&mut Reader::new(source), &context)?;
        let (mut groups, mut parts, mut rest) =
            (Vec::new(), Vec::<Range<usize>>::new(), metas.groups.as_slice());
        while let Some((group, inside, others)) = split_first(rest) {
            let is_kept = group.is_sound() && group.is_mapping();
            rest = if is_kept { others } else { &rest[1..] };
            // Groups in slots are smaller than a page, and each begins with what is not free.
            if !is_kept || !(0..group.slots()).any(|index| group.is_free(index)) {
                continue;
            }
            let start = groups.len();
            groups.push(*group);
            groups.extend_from_slice(inside);
            match parts.last_mut().filter(|part| part.len() < GROUPS) {
                Some(part) => part.end = groups.len(),
                None => parts.push(start..groups.len()),
            }
        }
        Ok(Some(Groups { context, groups, parts }))
    }

    /// Whether the books are still the same and make sense.
    pub fn are_sound(&self, source: &dyn MemorySource) -> Result<bool, Fault> {
        Ok(self.context.now(&mut Reader::new(source))?.is_some())
    }

    /// Into how many parts the groups are divided, each to be read on its own.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The whole pages of what is free now in one part. `source` stands still.
    pub fn free(&self, source: &dyn MemorySource, part: usize) -> Result<Free, Fault> {
        let part = self.parts.get(part).and_then(|part| self.groups.get(part.clone())).unwrap_or_default();
        let (mut metas, mut heads) = (Reader::new(source), Reader::new(source));
        let mut now = Vec::with_capacity(part.len());
        for known in part {
            let read = Group::read(&mut metas, &self.context, known.meta)?;
            let same =
                read.filter(|group| group.start == known.start && group.is_mapping() == known.is_mapping());
            if let Some(group) = same
                && group.is_settled(&mut heads)?
            {
                now.push(group);
            }
        }
        let mut free = Free { is_all: true, ..Free::default() };
        let mut rest = now.as_slice();
        while let Some((group, inside, others)) = split_first(rest) {
            rest = others;
            let range = group.range();
            if group.is_mapping() && covered(source, range.clone(), Area::is_private_anon) {
                let mut frames = Vec::new();
                free_frames(group, inside, range.end, &mut frames);
                frames.into_iter().for_each(|frame| free.add(frame, 0));
            }
        }
        Ok(free)
    }
}

/// Adds to `frames` those of the free slots of `group`, which has memory up to `end`, and of groups `inside` it.
fn free_frames(group: &Group, mut inside: &[Group], end: u64, frames: &mut Vec<Range<u64>>) {
    for index in 0..group.slots() {
        let frame = group.frame(index, end);
        let (here, others) = inside.split_at(inside.partition_point(|inner| inner.start < frame.end));
        inside = others;
        match here.split_first() {
            _ if group.is_free(index) => append(frames, frame),
            Some((inner, deeper)) if inner.fits(&frame) => free_frames(inner, deeper, frame.end, frames),
            _ => {}
        }
    }
}

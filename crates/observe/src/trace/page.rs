//! The ring buffer's sub-buffers, as trace_pipe_raw gives them: a header, then records of varying length.
//!
//! A record begins with 32 bits: 5 of type or length, 27 of nanoseconds since the record before
//! (include/linux/ring_buffer.h; the same since 2.6.30 but for absolute timestamps, 4.17). Invariants: the
//! iterator never looks past what the header says is filled nor past the slice, always advances, and stops
//! at the first thing that makes no sense.

use super::format::Header;

/// A record longer than 28 words, with its length in the next word; up to 28 the type is the length.
const LONG: u32 = 0;
const PADDING: u32 = 29;
const TIME_EXTEND: u32 = 30;
const TIME_STAMP: u32 = 31;
const TIME_BITS: u32 = 27;

/// The header's fill level has two flags above it: records were lost before this page, and how many is noted
/// after the last one (RB_MISSED_EVENTS, RB_MISSED_STORED). The exact count comes from per_cpu/cpuN/stats.
const FILLED: u64 = (1 << 30) - 1;

/// One record: when it was written, by the instance's trace clock in nanoseconds, and its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'p> {
    pub(super) time: u64,
    pub(super) data: &'p [u8],
}

/// Iterates over a sub-buffer's records.
#[derive(Debug)]
pub(super) struct Records<'p> {
    rest: &'p [u8],
    time: u64,
}

impl<'p> Records<'p> {
    /// The records of `page`, of which `header` describes the start.
    pub(super) fn new(header: &Header, page: &'p [u8]) -> Records<'p> {
        let time = header.timestamp.unsigned(page).unwrap_or_default();
        let filled = (header.commit.unsigned(page).unwrap_or_default() & FILLED) as usize;
        let data = page.get(header.data.offset..).unwrap_or_default();
        Records { rest: &data[..filled.min(data.len())], time }
    }

    fn word(&mut self) -> Option<u32> {
        let (word, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u32::from_ne_bytes(*word))
    }

    fn take(&mut self, len: usize) -> Option<&'p [u8]> {
        let (data, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(data)
    }

    /// The next record, or `None` at the end; also where the bytes make no sense, as there the rest cannot
    /// be found any more.
    fn advance(&mut self) -> Option<Record<'p>> {
        loop {
            let word = self.word()?;
            let (kind, delta) = split(word);
            self.time = match kind {
                // The top five bits do not fit into the record: they are those of the page.
                TIME_STAMP => {
                    let low = u64::from(self.word()?) << TIME_BITS | u64::from(delta);
                    self.time & !((1 << 59) - 1) | low & ((1 << 59) - 1)
                }
                TIME_EXTEND => {
                    let extend = u64::from(self.word()?) << TIME_BITS | u64::from(delta);
                    self.time.wrapping_add(extend)
                }
                _ => self.time.wrapping_add(delta.into()),
            };
            match kind {
                TIME_STAMP | TIME_EXTEND => {}
                // Padding without a time is the unused end of the page, with one a discarded record.
                PADDING if delta == 0 => return None,
                PADDING => drop(self.long()?),
                LONG => return Some(Record { time: self.time, data: self.long()? }),
                words => return Some(Record { time: self.time, data: self.take(words as usize * 4)? }),
            }
        }
    }

    /// What follows a length word: the length counts that word itself, and lengths are whole words.
    fn long(&mut self) -> Option<&'p [u8]> {
        let len = (self.word()? as usize).checked_sub(4)?;
        self.take(len.checked_next_multiple_of(4)?)
    }
}

impl<'p> Iterator for Records<'p> {
    type Item = Record<'p>;

    fn next(&mut self) -> Option<Record<'p>> {
        let record = self.advance();
        if record.is_none() {
            self.rest = &[];
        }
        record
    }
}

/// The record's first word, cut into type and time as the compiler lays out the kernel's bit fields.
fn split(word: u32) -> (u32, u32) {
    if cfg!(target_endian = "little") {
        (word & 31, word >> 5)
    } else {
        (word >> TIME_BITS, word & ((1 << 27) - 1))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::format::tests::HEADER_PAGE;
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) fn header() -> Header {
        Header::parse(HEADER_PAGE.as_bytes()).unwrap()
    }

    fn word(kind: u32, delta: u32) -> [u8; 4] {
        let word = if cfg!(target_endian = "little") { delta << 5 | kind } else { kind << TIME_BITS | delta };
        word.to_ne_bytes()
    }

    fn page(time: u64, flags: u64, body: &[u8]) -> Vec<u8> {
        let mut page = time.to_ne_bytes().to_vec();
        page.extend_from_slice(&(body.len() as u64 | flags).to_ne_bytes());
        page.extend_from_slice(body);
        page.resize(4096, 0xee);
        page
    }

    /// A page of records of 8-byte multiples, each `step` nanoseconds after the one before.
    pub(in super::super) fn page_of(time: u64, step: u32, records: &[Vec<u8>]) -> Vec<u8> {
        let body: Vec<u8> = records
            .iter()
            .flat_map(|r| [&word(0, step)[..], &(r.len() as u32 + 4).to_ne_bytes(), r].concat())
            .collect();
        page(time, 0, &body)
    }

    #[test]
    fn every_kind_of_record() {
        let body = [
            &word(2, 5)[..],
            &[1; 8],
            &word(TIME_EXTEND, 1),
            &1u32.to_ne_bytes(),
            &word(PADDING, 2),
            &8u32.to_ne_bytes(),
            &[9; 4],
            &word(LONG, 3),
            &12u32.to_ne_bytes(),
            &[2; 8],
            &word(TIME_STAMP, 7),
            &4u32.to_ne_bytes(),
            &word(1, 0),
            &[3; 4],
            &word(PADDING, 0),
            &[4; 8],
        ]
        .concat();
        // As seen on 6.18 after an overrun: the fill level is sign-extended with the lost flag set.
        let page = page(1000, 0xffff_ffff_8000_0000, &body);
        let seen: Vec<(u64, &[u8])> = Records::new(&header(), &page).map(|r| (r.time, r.data)).collect();
        let late = 1005 + (1 << 27) + 1 + 2 + 3;
        assert_eq!(seen, [(1005, &[1; 8][..]), (late, &[2; 8]), ((4 << 27) + 7, &[3; 4])]);
    }

    #[test]
    fn a_cut_page_ends_early() {
        let page = page_of(0, 1, &[vec![7; 8], vec![8; 8]]);
        assert_eq!(Records::new(&header(), &page).count(), 2);
        assert_eq!(Records::new(&header(), &page[..36]).count(), 1);
        assert_eq!(Records::new(&header(), &page[..12]).count(), 0);
    }

    proptest! {
        #[test]
        fn arbitrary_pages_never_panic_and_end(page: Vec<u8>) {
            prop_assert!(Records::new(&header(), &page).count() <= page.len() / 4);
        }

        #[test]
        fn arbitrary_records_stay_inside(body in proptest::collection::vec(any::<u32>(), 0..200), filled: u16) {
            let mut page = 0u64.to_ne_bytes().to_vec();
            page.extend_from_slice(&u64::from(filled).to_ne_bytes());
            page.extend(body.iter().flat_map(|w| w.to_ne_bytes()));
            let total: usize = Records::new(&header(), &page).map(|r| r.data.len() + 4).sum();
            prop_assert!(total <= page.len());
        }
    }
}

//! mallocng's static books: struct malloc_context (meta.h), which no symbol leads to in a stripped libc.
//!
//! Invariant: static data are the books only if they begin with a secret with which the first and the last page of metas
//! that they name begin too, and the next unused meta that they name is the one that follows from their count of unused
//! ones. The secret is 64 random bits (AT_RANDOM), never 0.

use super::metas::{AREA, AREA_HEAD, META, METAS};
use crate::data;
use crate::glibc;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, there};

/// More of a data segment in memory is not searched.
const DATA_MOST: u64 = 32 << 20;
/// How often books that a running process changes are read again.
const READS_MOST: usize = 4;
/// Words of the books as far as they are read: secret, init_done with mmap_counter, free_meta_head, avail_meta,
/// avail_meta_count, avail_meta_area_count, meta_alloc_shift, meta_area_head, meta_area_tail.
const WORDS: usize = 9;
const AVAIL: usize = 3;
const AVAIL_COUNT: usize = 4;
const HEAD: usize = 7;
const TAIL: usize = 8;

/// The books of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Context {
    /// Where they are.
    pub(super) address: u64,
    /// What every page of metas begins with.
    pub(super) secret: u64,
    /// The first page of metas.
    pub(super) head: u64,
    /// Whether the page size is a word of them: where it is not the same on all machines (aarch64).
    has_page_size: bool,
}

/// The books of `source`, if it has any. Where glibc is, musl is not.
pub(super) fn find(source: &dyn MemorySource) -> Result<Option<Context>, Fault> {
    if source.areas().iter().any(|area| glibc::is_libc(&area.path)) {
        return Ok(None);
    }
    let (mut data, mut reader) = (Reader::new(source), Reader::new(source));
    for segment in data::segments(source.areas()) {
        let runs = data::present(source, segment.range(), DATA_MOST)?;
        let found = data::words(&mut data, &runs, |at, word| {
            // init_done, with the counter of mappings in the upper half.
            if word as u32 != 1 {
                return Ok(None);
            }
            let plain = Context::read(&mut reader, at.wrapping_sub(8), false)?;
            Ok(if plain.is_some() { plain } else { Context::read(&mut reader, at.wrapping_sub(16), true)? })
        })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

impl Context {
    /// The books at `address`, if they are such.
    fn read(reader: &mut Reader<'_>, address: u64, has_page_size: bool) -> Result<Option<Context>, Fault> {
        for _ in 0..READS_MOST {
            let Some(words) = Context::words(reader, address, has_page_size)? else { return Ok(None) };
            let [secret, head, tail] = [words[0], words[HEAD], words[TAIL]];
            let is_page = |at: u64| at != 0 && at.is_multiple_of(AREA) && at < 1 << 56;
            if !is_page(head) || !is_page(tail) || there(reader.u64(head))? != Some(secret) {
                return Ok(None);
            }
            let unused = words[AVAIL_COUNT];
            let avail = tail + AREA_HEAD + META * METAS.saturating_sub(unused);
            if unused <= METAS && words[AVAIL] == avail && Context::is_last(reader, secret, tail)? {
                return Ok(Some(Context { address, secret, head, has_page_size }));
            }
            if reader.source().is_still() {
                break;
            }
            // A page of metas is begun in several steps.
            reader.refresh();
        }
        Ok(None)
    }

    /// Whether the last page of metas is at `tail`.
    fn is_last(reader: &mut Reader<'_>, secret: u64, tail: u64) -> Result<bool, Fault> {
        Ok(match words::<3>(reader, tail)? {
            Some([check, next, count]) => check == secret && next == 0 && count as u32 == METAS as u32,
            // It may be newer than the list of mappings.
            None => !reader.source().is_still(),
        })
    }

    /// The words at `address`, the page size left out; nothing if they cannot be books.
    fn words(
        reader: &mut Reader<'_>,
        address: u64,
        has_page_size: bool,
    ) -> Result<Option<[u64; WORDS]>, Fault> {
        let Some([secret, page_size]) = words(reader, address)? else { return Ok(None) };
        let is_size = page_size.is_power_of_two() && (AREA..=AREA << 4).contains(&page_size);
        if secret == 0 || has_page_size && !is_size {
            return Ok(None);
        }
        let behind = if has_page_size { 16 } else { 8 };
        let rest = words::<{ WORDS - 1 }>(reader, address.wrapping_add(behind))?;
        Ok(rest.map(|rest| {
            let mut words = [secret; WORDS];
            words[1..].copy_from_slice(&rest);
            words
        }))
    }

    /// The books as they are now; nothing where they make no sense, or are another process's.
    pub(super) fn now(&self, reader: &mut Reader<'_>) -> Result<Option<Context>, Fault> {
        let now = Context::read(reader, self.address, self.has_page_size)?;
        Ok(now.filter(|now| now == self))
    }
}

/// `N` words at `address`.
fn words<const N: usize>(reader: &mut Reader<'_>, address: u64) -> Result<Option<[u64; N]>, Fault> {
    let bytes = there(reader.bytes(address, 8 * N))?;
    Ok(bytes.map(|bytes| {
        let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        std::array::from_fn(|_| words.next().unwrap_or_default())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Image;
    use crate::source::Area;

    const SECRET: u64 = 0x1234_5678_9abc_def0;
    const DATA: u64 = 0x10000;
    const PAGE: u64 = 0x20000;

    /// Static data that begin with `books`, and one page of metas with `head`.
    fn image(books: &[u64], head: [u64; 3]) -> Image {
        let bytes = |words: &[u64]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(AREA as usize, 0);
            bytes
        };
        let mut image = Image::default();
        image.map(Area { inode: 7, path: b"/bin/program".to_vec(), ..Area::anon(DATA..DATA + AREA) });
        image.map(Area::anon(PAGE..PAGE + AREA));
        image.put(DATA, bytes(&[&[77, 1, 0], books].concat()));
        image.put(PAGE, bytes(&head));
        image
    }

    /// Three metas of the page were used; mappings were made five times.
    const BOOKS: [u64; WORDS] =
        [SECRET, 5 << 32 | 1, 0, PAGE + AREA_HEAD + 3 * META, METAS - 3, 0, 0, PAGE, PAGE];
    const PAGES_HEAD: [u64; 3] = [SECRET, 0, METAS];

    #[test]
    fn books_are_found_where_all_parts_agree() {
        let [secret, rest @ ..] = BOOKS;
        let wide = [&[secret, 65536][..], &rest].concat();
        for (books, has_page_size) in [(BOOKS.to_vec(), false), (wide, true)] {
            let found = find(&image(&books, PAGES_HEAD)).unwrap();
            assert_eq!(found, Some(Context { address: DATA + 24, secret, head: PAGE, has_page_size }));
        }
        let with = |index: usize, word: u64| {
            let mut books = BOOKS;
            books[index] = word;
            find(&image(&books, PAGES_HEAD)).unwrap()
        };
        for (index, word) in [(0, 1), (1, 5 << 32), (3, PAGE), (4, METAS), (7, 0), (7, DATA), (8, PAGE + 8)] {
            assert_eq!(with(index, word), None, "{index}");
        }
        for head in [[SECRET + 1, 0, METAS], [SECRET, PAGE, METAS], [SECRET, 0, METAS + 1]] {
            assert_eq!(find(&image(&BOOKS, head)).unwrap(), None);
        }
    }

    #[test]
    fn books_that_change_are_told() {
        let image = image(&BOOKS, PAGES_HEAD);
        let context = find(&image).unwrap().unwrap();
        assert_eq!(context.now(&mut Reader::new(&image)).unwrap(), Some(context));
        let mut other = image.clone();
        other.patch(DATA + 24, &(SECRET + 1).to_le_bytes());
        assert_eq!(context.now(&mut Reader::new(&other)).unwrap(), None);
    }

    #[test]
    fn where_glibc_is_nothing_is_searched() {
        let mut image = image(&BOOKS, PAGES_HEAD);
        let path = b"/usr/lib/x86_64-linux-gnu/libc.so.6".to_vec();
        image.map(Area { inode: 8, path, ..Area::anon(0x40000..0x41000) });
        assert_eq!(find(&image).unwrap(), None);
    }
}

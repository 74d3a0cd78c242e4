//! What must hold of a heap between two calls, for `EBBTIDE_MALLOC_CHECK`: aborts if it does not.

use super::entry::{ALIASED, CURRENT, LISTED, MESHED, STUCK, pages_of};
use super::heap::Heap;
use super::list;
use crate::check::demand;
use crate::class::Class;
use crate::map::Page;

impl Heap {
    /// Looks at every page that holds something.
    pub(crate) fn verify(&self) {
        let mut meshed = 0;
        for (page, class) in pages_of(self.id, 0) {
            verify_page(page, Class::of(class));
            meshed += u64::from(page.entry().is(MESHED));
        }
        demand(meshed == self.told.meshed.get(), "meshed pages are counted", Page::at(0));
    }
}

fn verify_page(page: Page, class: &Class) {
    let entry = page.entry();
    let (count, due) = (u32::from(entry.count.get()), u32::from(entry.due.get()));
    let bits: u32 = entry.free.iter().map(|word| word.get().count_ones()).sum();
    demand(bits == count, "a page's free slots are counted", page);
    let [current, listed, meshed] = [CURRENT, LISTED, MESHED].map(|flag| entry.is(flag));
    demand(u32::from(current) + u32::from(listed) + u32::from(meshed) <= 1, "a page is in one place", page);
    demand(current || count < class.slots, "a page that holds nothing has left", page);
    demand(current || listed || meshed || count == 0, "a page with free slots is in a list", page);
    demand(current || due > count, "the next free that matters is to come", page);
    demand(!listed || class.bucket(count) == u32::from(entry.bucket.get()), "a page is in its bucket", page);
    demand(!meshed || entry.is(ALIASED), "a meshed page is mapped from a file", page);
    demand(meshed || !entry.is(STUCK), "a page that nobody may use is meshed", page);
    if let Some(next) = list::page(entry.next.get()).filter(|_| listed || meshed) {
        demand(next.entry().prev.get() == list::link(page), "lists are linked both ways", page);
    }
}

//! Doubly linked lists of a Lua heap's pages, by `next` and `prev` of their entries. A page is in one list at most.
//!
//! A link is a page's number plus one; 0 ends a list, so that zeros are an empty one.

use crate::map::Page;

/// The page that a link leads to.
pub(super) fn page(link: u32) -> Option<Page> {
    link.checked_sub(1).map(|n| Page::at(n as usize))
}

/// The link that leads to a page.
pub(super) fn link(page: Page) -> u32 {
    page.index() as u32 + 1
}

/// Puts a page, which is in no list, at the head of one.
pub(super) fn insert(head: &mut u32, new: Page) {
    let entry = new.entry();
    entry.prev.set(0);
    entry.next.set(*head);
    if let Some(next) = page(*head) {
        next.entry().prev.set(link(new));
    }
    *head = link(new);
}

/// Takes a page out of its list.
pub(super) fn remove(head: &mut u32, old: Page) {
    let (next, prev) = (old.entry().next.get(), old.entry().prev.get());
    if let Some(next) = page(next) {
        next.entry().prev.set(prev);
    }
    match page(prev) {
        Some(prev) => prev.entry().next.set(next),
        None => *head = next,
    }
}

/// The pages of a list; each may be put into another list when it is seen, as the next is known by then.
pub(super) fn each(head: u32) -> impl Iterator<Item = Page> {
    core::iter::successors(page(head), |this| page(this.entry().next.get()))
}

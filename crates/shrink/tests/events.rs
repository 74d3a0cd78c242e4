//! Tracing events of a cascade, as a subscriber gets them.
#![allow(clippy::expect_used)]

use ebbtide_shrink::{Policy, Registry, Turn};
use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Keeps each event as a line.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").expect("a string takes all");
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("ebbtide_shrink")
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().expect("nobody panics with it").push(line.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn a_cascade_and_its_largest_buffers_are_told() {
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || {
        let registry = Registry::with_allocator(Policy::new(), || {});
        let mut queues = HashMap::from([("a\n", Vec::<u8>::with_capacity(5000))]);
        let mut member = registry.member("queues");
        registry.flag();
        assert!(matches!(member.poll(&mut queues), Turn::Done(_)));
    });
    let lines = lines.0.lock().expect("nobody panicked with it");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("INFO") && lines[0].contains(" owner=\"queues\""), "{lines:?}");
    assert!(lines[0].contains(" returned_bytes=5000"), "{lines:?}");
    assert!(
        lines[1].starts_with("DEBUG") && lines[1].contains(" path=queues[\"a\\n\"] kind=\"Vec\""),
        "{lines:?}"
    );
}

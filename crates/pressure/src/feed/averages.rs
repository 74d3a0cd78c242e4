//! A PSI file on which no trigger may be had, read now and then.

use super::gauge::Gauge;
use super::{Feed, Lost};
use crate::judge::Look;
use std::time::Duration;

/// The kernel brings the averages up to date as often (`PSI_FREQ`).
pub(crate) const BEAT: Duration = Duration::from_secs(2);

/// A PSI file's averages.
pub(crate) struct Averages(pub(crate) Gauge);

impl Feed for Averages {
    fn look(&mut self) -> Result<Look, Lost> {
        self.0.look()
    }

    fn beat(&self) -> Option<Duration> {
        Some(BEAT)
    }
}

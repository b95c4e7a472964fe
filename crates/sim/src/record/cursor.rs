//! A place in a recorded run, which moves both ways.

use super::{Event, Picture, Recording};

/// Between two events: so many have happened.
#[derive(Debug)]
pub struct Cursor<'a> {
    recording: &'a Recording,
    happened: usize,
    picture: Picture,
}

impl<'a> Cursor<'a> {
    /// Before the first event.
    pub fn new(recording: &'a Recording) -> Self {
        Self { recording, happened: 0, picture: Picture::new() }
    }

    /// After the last event.
    pub fn at_end(recording: &'a Recording) -> Self {
        let mut cursor = Self::new(recording);
        cursor.go(recording.events.len());
        cursor
    }

    /// How many events have happened.
    pub fn happened(&self) -> usize {
        self.happened
    }

    /// Everything there is.
    pub fn picture(&self) -> &Picture {
        &self.picture
    }

    /// The next event happens; `None` at the end.
    pub fn forward(&mut self) -> Option<&'a Event> {
        let event = self.recording.events.get(self.happened)?;
        event.forward(&mut self.picture);
        self.happened += 1;
        Some(event)
    }

    /// The latest event is taken back; `None` at the beginning.
    pub fn back(&mut self) -> Option<&'a Event> {
        let before = self.happened.checked_sub(1)?;
        let event = self.recording.events.get(before)?;
        event.backward(&mut self.picture);
        self.happened = before;
        Some(event)
    }

    /// To where `happened` events have happened, or to the end.
    pub fn go(&mut self, happened: usize) {
        while self.happened < happened && self.forward().is_some() {}
        while self.happened > happened && self.back().is_some() {}
    }

    /// To where everything up to `at` (milliseconds) has happened.
    pub fn go_to_time(&mut self, at: u64) {
        self.go(self.recording.events.partition_point(|event| event.at <= at));
    }
}

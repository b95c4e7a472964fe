//! A recorded run: the log that `shadow simulate --log` writes and `shadow replay` reads.
//!
//! JSON Lines. The first line is the [`Header`]; every other line is one [`Event`]: when, what
//! happened, and what it changed, with the value before and after. So the log alone leads from the
//! empty world to any instant, forwards and backwards. A log is a stranger's bytes: every line is
//! checked against what the lines before it say.

mod cursor;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

pub use cursor::Cursor;
use serde::{Deserialize, Serialize};

use crate::forecast::Options;
use crate::world::World;

/// Everything there is at an instant: values by name.
pub type Picture = BTreeMap<String, String>;

/// Version of the format; another one is not read.
pub const VERSION: u32 = 1;

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format of this file.
    #[serde(rename = "shadowLog")]
    pub version: u32,
    /// What was simulated, with the seed: enough to run it again.
    pub options: Options,
}

/// What happened at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Milliseconds since the simulation began; the migration begins at 50.
    pub at: u64,
    /// What happened, in words, a line each.
    pub what: Vec<String>,
    /// What is different since the event before, sorted by name.
    pub changes: Vec<Change>,
}

/// One value that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Name of the value.
    pub name: String,
    /// Its value before; absent: it did not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Its value after; absent: it does not exist any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// A whole recorded run.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// What was simulated.
    pub header: Header,
    /// What happened, in order.
    pub events: Vec<Event>,
}

/// Why a log can't be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line} of the log: {why}")]
pub struct BrokenLog {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

impl Recording {
    /// The log's text.
    pub fn write(&self) -> Result<String, serde_json::Error> {
        let mut text = serde_json::to_string(&self.header)?;
        for event in &self.events {
            let _ = write!(text, "\n{}", serde_json::to_string(event)?);
        }
        text.push('\n');
        Ok(text)
    }

    /// Reads a log and checks that each line follows from those before it.
    pub fn read(bytes: &[u8]) -> Result<Self, BrokenLog> {
        let mut lines = bytes.strip_suffix(b"\n").unwrap_or(bytes).split(|byte| *byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let header: Header = serde_json::from_slice(first).map_err(|error| {
            let why = format!("not the first line of a log of shadow simulate: {}", plain(&error));
            BrokenLog { line: 1, why }
        })?;
        if header.version != VERSION {
            let why = format!(
                "the log has version {}, this program reads version {VERSION}",
                header.version
            );
            return Err(BrokenLog { line: 1, why });
        }
        let (mut events, mut picture, mut last) = (Vec::new(), Picture::new(), 0);
        for (index, line) in lines.enumerate() {
            let broken = |why: String| BrokenLog { line: index + 2, why };
            let event: Event = serde_json::from_slice(line)
                .map_err(|error| broken(format!("not an event: {}", plain(&error))))?;
            if event.at < last {
                return Err(broken(format!("{} ms comes after {last} ms", event.at)));
            }
            last = event.at;
            event.check(&picture).map_err(broken)?;
            event.forward(&mut picture);
            events.push(event);
        }
        Ok(Self { header, events })
    }

    /// The picture after the first `count` events.
    pub fn picture(&self, count: usize) -> Picture {
        let mut picture = Picture::new();
        for event in self.events.iter().take(count) {
            event.forward(&mut picture);
        }
        picture
    }
}

/// The parser's own count of lines is of no use: it sees one at a time.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

impl Event {
    /// The event follows from `picture`, and can be taken back.
    fn check(&self, picture: &Picture) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for Change { name, before, .. } in &self.changes {
            if !seen.insert(name) {
                return Err(format!("{name:?} changes twice in one event"));
            }
            let is = picture.get(name);
            if is != before.as_ref() {
                let value =
                    |value: Option<&String>| value.map_or("absent".into(), |it| format!("{it:?}"));
                let (said, is) = (value(before.as_ref()), value(is));
                return Err(format!("{name:?} was {said}, says the line, but it was {is}"));
            }
        }
        Ok(())
    }

    /// From the picture before the event to the picture after it.
    pub fn forward(&self, picture: &mut Picture) {
        self.changes.iter().for_each(|change| set(picture, &change.name, change.after.as_ref()));
    }

    /// From the picture after the event to the picture before it.
    pub fn backward(&self, picture: &mut Picture) {
        self.changes.iter().for_each(|change| set(picture, &change.name, change.before.as_ref()));
    }
}

fn set(picture: &mut Picture, name: &str, value: Option<&String>) {
    match value {
        Some(value) => picture.insert(name.to_owned(), value.clone()),
        None => picture.remove(name),
    };
}

/// What is different between two pictures.
fn difference(before: &Picture, after: &Picture) -> Vec<Change> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    changed
        .map(|name| Change {
            name: name.clone(),
            before: before.get(name).cloned(),
            after: after.get(name).cloned(),
        })
        .collect()
}

/// Writes down a run while it goes on: an event wherever the world's own log grows.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub events: Vec<Event>,
    picture: Picture,
    lines: usize,
}

impl Recorder {
    pub fn look(&mut self, world: &mut World) {
        let from = self.lines;
        self.lines = world.log.len();
        if self.lines == from {
            return;
        }
        let what = world.log.since(from).map(|line| line.trim().to_owned()).collect();
        let picture = world.picture();
        let changes = difference(&self.picture, &picture);
        self.events.push(Event { at: world.now(), what, changes });
        self.picture = picture;
    }
}

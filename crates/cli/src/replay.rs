//! `shadow replay`: steps through a run that `shadow simulate --log` recorded.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use console::{Key, Term};
use shadow_sim::record::{Change, Cursor, Event, Recording};

/// Which run, and how to see it.
#[derive(Args)]
pub struct ReplayArgs {
    /// The log.
    log: PathBuf,
    /// Print every event instead of asking for keys, as without a terminal.
    #[arg(long)]
    all: bool,
    /// Print event N and everything there was after it.
    #[arg(long, value_name = "N", conflicts_with_all = ["all", "back"])]
    at: Option<usize>,
    /// From the end to the beginning.
    #[arg(long)]
    back: bool,
}

const KEYS: &str = "n or → next, p or ← back, g go to a time, a everything there is, q quit";

/// Prints the events, or waits for keys on a terminal.
pub fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let name = args.log.display();
    let bytes = std::fs::read(&args.log).with_context(|| format!("read the log {name}"))?;
    let recording = Recording::read(&bytes).with_context(|| format!("{name} can't be replayed"))?;
    let term = Term::stdout();
    if let Some(number) = args.at {
        crate::out::print(&at(&recording, number)?)?;
    } else if args.all || !term.is_term() {
        crate::out::print(&all(&recording, args.back))?;
    } else {
        by_key(&recording, args.back, &term)?;
    }
    Ok(())
}

fn at(recording: &Recording, number: usize) -> anyhow::Result<String> {
    let last = recording.events.len();
    let event = number.checked_sub(1).and_then(|index| recording.events.get(index));
    let event = event.with_context(|| format!("there is no event {number}: 1 to {last}"))?;
    let mut cursor = Cursor::new(recording);
    cursor.go(number);
    Ok(forward(number, last, event) + &everything(&cursor))
}

fn all(recording: &Recording, back: bool) -> String {
    let last = recording.events.len();
    let mut text = String::new();
    if back {
        let mut cursor = Cursor::at_end(recording);
        while let Some(event) = cursor.back() {
            text += &backward(cursor.happened() + 1, last, event);
        }
    } else {
        let mut cursor = Cursor::new(recording);
        while let Some(event) = cursor.forward() {
            text += &forward(cursor.happened(), last, event);
        }
    }
    text
}

fn by_key(recording: &Recording, back: bool, term: &Term) -> anyhow::Result<()> {
    let last = recording.events.len();
    let mut cursor = if back { Cursor::at_end(recording) } else { Cursor::new(recording) };
    term.write_line(&format!("{last} events; {KEYS}"))?;
    loop {
        let text = match term.read_key()? {
            Key::Char('n' | ' ') | Key::ArrowRight | Key::ArrowDown | Key::Enter => {
                let event = cursor.forward();
                event.map_or("the end".to_owned(), |it| forward(cursor.happened(), last, it))
            }
            Key::Char('p') | Key::ArrowLeft | Key::ArrowUp => {
                let event = cursor.back();
                event.map_or("the beginning".to_owned(), |it| {
                    backward(cursor.happened() + 1, last, it)
                })
            }
            Key::Char('g') => {
                term.write_str("go to the millisecond: ")?;
                match term.read_line()?.trim().parse() {
                    Ok(time) => {
                        cursor.go_to_time(time);
                        format!(
                            "after {} of {last} events\n{}",
                            cursor.happened(),
                            everything(&cursor)
                        )
                    }
                    Err(_) => "write a number of milliseconds".to_owned(),
                }
            }
            Key::Char('a') => everything(&cursor),
            Key::Char('q') | Key::Escape | Key::CtrlC | Key::Unknown => return Ok(()),
            _ => KEYS.to_owned(),
        };
        term.write_line(text.trim_end())?;
    }
}

fn forward(number: usize, last: usize, event: &Event) -> String {
    let changes = event.changes.iter().map(|Change { name, before, after }| (name, before, after));
    told(&format!("event {number} of {last}"), event, changes)
}

fn backward(number: usize, last: usize, event: &Event) -> String {
    let changes = event.changes.iter().map(|Change { name, before, after }| (name, after, before));
    told(&format!("back before event {number} of {last}"), event, changes)
}

type Difference<'a> = (&'a String, &'a Option<String>, &'a Option<String>);

fn told<'a>(title: &str, event: &Event, changes: impl Iterator<Item = Difference<'a>>) -> String {
    let mut text = format!("{title}, at {} ms\n", event.at);
    for what in &event.what {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {}", clean(what));
    }
    for (name, from, to) in changes {
        let value = |value: &Option<String>| value.as_deref().map(clean);
        let _ = match (value(from), value(to)) {
            (Some(from), Some(to)) => writeln!(text, "    ~ {}: {from} -> {to}", clean(name)),
            (None, Some(to)) => writeln!(text, "    + {}: {to}", clean(name)),
            (Some(from), None) => writeln!(text, "    - {}: {from}", clean(name)),
            (None, None) => Ok(()),
        };
    }
    text
}

fn everything(cursor: &Cursor) -> String {
    let mut text = String::new();
    for (name, value) in cursor.picture() {
        let _ = writeln!(text, "    {}: {}", clean(name), clean(value));
    }
    text
}

/// A log may be anybody's: it shall not command the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

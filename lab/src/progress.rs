//! What the user sees while the lab works: a spinner on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::error::Result;

/// Reports steps as they begin and end.
pub struct Progress {
    /// Two parts may be built at once, each with its own line.
    terminal: Option<MultiProgress>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Reports to standard error.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Runs one step, saying what it is and how long it took.
    pub(crate) fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let spinner = self.spinner(what);
        let result = work();
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        if result.is_ok() {
            let line = format!("lab: {what}: {:.1} s", begun.elapsed().as_secs_f64());
            match &self.terminal {
                // A failed write to the terminal costs one line of comfort.
                Some(terminal) => drop(terminal.println(line)),
                None => eprintln!("{line}"),
            }
        }
        result
    }

    /// Says one thing.
    pub(crate) fn say(what: &str) {
        eprintln!("lab: {what}");
    }

    fn spinner(&self, what: &str) -> Option<ProgressBar> {
        let Some(terminal) = &self.terminal else {
            eprintln!("lab: {what} …");
            return None;
        };
        let spinner = terminal.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("lab: {msg} {spinner} {elapsed}") {
            spinner.set_style(style);
        }
        spinner.set_message(what.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(100));
        Some(spinner)
    }
}

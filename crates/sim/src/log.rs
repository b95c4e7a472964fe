//! What happened, line by line; written only where somebody will read it.

/// The log of a run.
#[derive(Debug, Default)]
pub struct Log {
    lines: Option<Vec<String>>,
}

impl Log {
    /// A log that is kept.
    pub fn kept() -> Self {
        Self { lines: Some(Vec::new()) }
    }

    /// Writes a line, if the log is kept.
    pub fn note(&mut self, now: u64, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{now:>6} ms  {}", line()));
        }
    }

    /// The lines from the `from`th on, without their time.
    pub(crate) fn since(&self, from: usize) -> impl Iterator<Item = &str> {
        let lines = self.lines.iter().flatten().skip(from);
        lines.map(|line| line.split_once(" ms  ").map_or(line.as_str(), |(_, what)| what))
    }

    /// How many lines there are.
    pub(crate) fn len(&self) -> usize {
        self.lines.as_ref().map_or(0, Vec::len)
    }

    /// The lines.
    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}

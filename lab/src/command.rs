//! Running other programs: output kept, failures told with their last lines.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::error::{Context, LabError, Result};

const TAIL_LINES: usize = 12;

/// Runs a short command to its end and returns what it wrote to its standard output.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().context(|| start(what, command))?;
    check(what, command, &output)
}

/// As [`run`], with `input` on the command's standard input.
pub(crate) fn run_with_input(what: &str, command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context(|| start(what, command))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early closes its end; its exit status says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().context(|| start(what, command))?;
    check(what, command, &output)
}

/// Runs a long command with its output in a log file.
pub(crate) fn run_logged(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    let file = append(log)?;
    let errors = file.try_clone().context(|| format!("open {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .status()
        .context(|| start(what, command))?;
    if status.success() {
        return Ok(());
    }
    Err(LabError::Program {
        what: what.to_owned(),
        program: program(command),
        status: status.to_string(),
        output: format!("; the last lines of {}:{}", log.display(), tail(log)),
    })
}

/// Opens a log for appending, creating its folder.
pub(crate) fn append(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
    }
    File::options()
        .create(true)
        .append(true)
        .open(log)
        .context(|| format!("open {}", log.display()))
}

/// The last lines of a log, each on a line of its own and indented.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&text))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if shown.is_empty() {
        return " (it is empty)".into();
    }
    shown.iter().fold(String::new(), |text, line| text + "\n  " + line)
}

fn check(what: &str, command: &Command, output: &Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(LabError::Program {
        what: what.to_owned(),
        program: program(command),
        status: output.status.to_string(),
        output: if text.is_empty() { String::new() } else { format!(":{}", last_lines(&text)) },
    })
}

fn start(what: &str, command: &Command) -> String {
    format!("{what}: {} does not start", program(command))
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_the_programs_own_words() {
        let error = run("try", Command::new("sh").args(["-c", "echo because >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "cannot try: sh ended with exit status: 3:\n  because");
    }

    #[test]
    fn only_the_last_lines_are_shown() {
        let text = (1..=100).fold(String::new(), |text, n| text + &format!("line {n}\n"));
        let shown = last_lines(&text);
        assert!(shown.starts_with("\n  line 89\n") && shown.ends_with("\n  line 100"));
    }

    #[test]
    fn input_reaches_the_program() {
        assert_eq!(run_with_input("copy", &mut Command::new("cat"), "text").unwrap(), "text");
    }
}

//! The forecast as people read it.

use std::fmt::Write;

use shadow_sim::forecast::{Ending, Forecast, Invariant, LagPoint};

const ROWS: u64 = 6;
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// All of it.
pub fn text(forecast: &Forecast) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut text, forecast);
    text
}

fn write(out: &mut String, forecast: &Forecast) -> std::fmt::Result {
    asked(out, forecast)?;
    writeln!(out, "\nTimeline\n     begin  duration")?;
    for phase in &forecast.phases {
        span(out, phase.begin_ms, phase.for_ms, &phase.name)?;
        let steps = forecast.steps.iter().filter(|step| {
            let within = phase.begin_ms..=phase.begin_ms + phase.for_ms;
            let named = step.name.split_once('/').is_some_and(|(of, _)| of == phase.name);
            named && within.contains(&step.begin_ms)
        });
        for step in steps {
            let name = step.name.split_once('/').map_or("", |(_, name)| name);
            span(out, step.begin_ms, step.for_ms, &format!("  {name}"))?;
        }
    }
    writeln!(out, "  {} in all", seconds(forecast.total_ms).trim())?;
    let pause = &forecast.pause;
    writeln!(
        out,
        "\nPause: {} in which messages waited and no copy applied one",
        short(pause.for_ms)
    )?;
    for part in &pause.parts {
        writeln!(out, "{}{:>7} ms  {}", seconds(part.begin_ms), part.for_ms, part.name)?;
    }
    writeln!(out, "\nOldest message when it was applied: {}", short(forecast.max_age_ms))?;
    chart(out, &forecast.lag, forecast.total_ms)?;
    verdict(out, forecast)
}

fn asked(out: &mut String, forecast: &Forecast) -> std::fmt::Result {
    let options = &forecast.options;
    writeln!(
        out,
        "Prediction for {} messages/s from {} publishers, {} each; {} waiting\n\
         checkpoint {} MB, network {} MB/s, strategy {:?}, seed {}",
        options.rate,
        options.publishers,
        micros(options.service_micros),
        options.backlog,
        options.checkpoint_mb,
        decimal(options.bandwidth, 1_000_000),
        options.strategy,
        options.seed,
    )?;
    if let Some(fault) = &options.fault {
        writeln!(out, "fault {fault}")?;
    }
    match &forecast.mode {
        Some(mode) => writeln!(out, "mode {:?}: {}", mode.mode, mode.reason),
        None => Ok(()),
    }
}

fn span(out: &mut String, begin: u64, long: u64, name: &str) -> std::fmt::Result {
    writeln!(out, "{}{}  {name}", seconds(begin), seconds(long))
}

fn seconds(millis: u64) -> String {
    format!("{:>8}.{:02} s", millis / 1_000, millis % 1_000 / 10)
}

fn short(millis: u64) -> String {
    if millis < 1_000 { format!("{millis} ms") } else { seconds(millis).trim().to_owned() }
}

fn micros(micros: u64) -> String {
    if micros < 1_000 { format!("{micros} µs") } else { format!("{} ms", decimal(micros, 1_000)) }
}

/// `number` ÷ `unit`, with no more digits than it takes.
fn decimal(number: u64, unit: u64) -> String {
    let (whole, rest) = (number / unit, number % unit);
    let digits = unit.to_string().len() - 1;
    let text = format!("{whole}.{rest:0digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A column per point, in eighths of a row.
fn chart(out: &mut String, points: &[LagPoint], total: u64) -> std::fmt::Result {
    let most = points.iter().map(|point| point.waiting).max().unwrap_or_default();
    writeln!(out, "\nMessages waiting for the survivor: {most} at most")?;
    let width = most.to_string().len().max(4);
    for row in (0..ROWS).rev() {
        let label = if row == ROWS - 1 { most.to_string() } else { String::new() };
        let column = |point: &LagPoint| {
            let eighths = (point.waiting * ROWS * 8).div_ceil(most.max(1));
            let here = eighths.saturating_sub(row * 8).min(8);
            BLOCKS[usize::try_from(here).unwrap_or_default()]
        };
        let line: String = points.iter().map(column).collect();
        writeln!(out, "{}", format!("{label:>width$} |{line}").trim_end())?;
    }
    let end = short(total);
    let axis = "-".repeat(points.len());
    writeln!(out, "{:>width$} +{axis}", 0)?;
    writeln!(out, "{:width$}  0{end:>rest$}", "", rest = points.len().saturating_sub(1))
}

fn verdict(out: &mut String, forecast: &Forecast) -> std::fmt::Result {
    let verdict = &forecast.verdict;
    let result = match verdict.result {
        Ending::Completed => "Completed",
        Ending::RolledBack => "Rolled back",
        Ending::Refused => "Refused",
        Ending::Unfinished => "Unfinished",
    };
    write!(out, "\nVerdict: {result}")?;
    if let (Some(reason), Some(message)) = (&verdict.reason, &verdict.message) {
        write!(out, " ({reason}: {message})")?;
    }
    writeln!(out)?;
    if let Some(tally) = &verdict.messages {
        writeln!(
            out,
            "  {} published, {} applied; {} lost, {} duplicated, {} reordered; {} goes on",
            tally.published,
            tally.applied,
            tally.lost,
            tally.duplicated,
            tally.reordered,
            tally.survivor
        )?;
    }
    for Invariant { number, claim, holds, note } in &verdict.invariants {
        let word = if *holds { "holds " } else { "BROKEN" };
        let note = note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
        writeln!(out, "  {number} {word}  {claim}{note}")?;
    }
    Ok(())
}

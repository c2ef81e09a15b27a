//! What the demonstration prints: headings, lines that explain, tables, promises.

use std::time::Duration;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};

/// Collects the promises of all acts.
#[derive(Default)]
pub struct Show {
    act: u32,
    promises: Vec<Promise>,
}

struct Promise {
    act: u32,
    what: String,
    kept: bool,
    seen: String,
}

impl Show {
    /// Begins an act.
    pub fn act(&mut self, title: &str) {
        self.act += 1;
        println!("\n=== {}. {title}", self.act);
    }

    /// Explains in one line what is about to happen.
    pub fn say(&self, line: impl AsRef<str>) {
        println!("    {}", line.as_ref());
    }

    /// Prints a table; columns after the first are numbers.
    pub fn table<const N: usize>(
        &self,
        header: [&str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) {
        let mut table = Table::new();
        table.load_preset(UTF8_BORDERS_ONLY).set_header(header);
        rows.into_iter().for_each(|row| {
            table.add_row(row);
        });
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for line in table.to_string().lines() {
            println!("    {line}");
        }
    }

    /// Notes a promise, and whether it was kept.
    pub fn promise(&mut self, what: impl Into<String>, kept: bool, seen: impl Into<String>) {
        let (what, seen) = (what.into(), seen.into());
        println!("    [{}] {what}: {seen}", verdict(kept));
        self.promises.push(Promise {
            act: self.act,
            what,
            kept,
            seen,
        });
    }

    /// A bar for what takes long; not shown without a terminal.
    pub fn bar(&self, what: &str, length: u64) -> ProgressBar {
        let bar = ProgressBar::new(length).with_message(what.to_owned());
        if let Ok(style) =
            ProgressStyle::with_template("    {msg} {wide_bar} {human_pos}/{human_len} [{elapsed}]")
        {
            bar.set_style(style);
        }
        bar
    }

    /// A spinner for what takes long and has no length.
    pub fn spinner(&self, what: &str) -> ProgressBar {
        let bar = ProgressBar::new_spinner().with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template("    {spinner} {msg} [{elapsed}]") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    /// A bar for steps that take long each; without a terminal, a line for each.
    pub fn steps(&self, count: usize) -> Steps {
        let bar = self.bar("", count as u64);
        bar.enable_steady_tick(Duration::from_millis(100));
        Steps { bar }
    }

    /// Prints every promise again, and says whether all were kept.
    pub fn summary(&self, time: Duration) -> bool {
        println!("\n=== Summary");
        self.table(
            ["promise", "act", "seen", "verdict"],
            self.promises.iter().map(|promise| {
                [
                    promise.what.clone(),
                    promise.act.to_string(),
                    promise.seen.clone(),
                    verdict(promise.kept).to_owned(),
                ]
            }),
        );
        let broken = self.promises.iter().filter(|promise| !promise.kept).count();
        let kept = self.promises.len() - broken;
        println!(
            "\n    {kept} promises kept, {broken} broken, in {:.1} s",
            time.as_secs_f64()
        );
        broken == 0
    }
}

/// What [`Show::steps`] shows.
pub struct Steps {
    bar: ProgressBar,
}

impl Steps {
    /// Begins the next one.
    pub fn next(&self, what: &str) {
        if self.bar.is_hidden() {
            println!("    ... {what}");
        }
        if !self.bar.message().is_empty() {
            self.bar.inc(1);
        }
        self.bar.set_message(what.to_owned());
    }

    /// The last one is done.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

fn verdict(kept: bool) -> &'static str {
    if kept { "kept" } else { "BROKEN" }
}

/// A duration in milliseconds, for people.
pub fn milliseconds(time: Option<Duration>) -> String {
    match time {
        Some(time) => format!("{:.1} ms", time.as_secs_f64() * 1000.0),
        None => "at once".to_owned(),
    }
}

//! Figures: measured numbers with what they are compared with, for people as a
//! table and for programs as JSON.

use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::clock::Samples;

/// What a figure's ratio (or difference) should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At most this many times the reference.
    AtMost(f64),
    /// At least this many times the reference.
    AtLeast(f64),
    /// At most this much more than the reference, in the figure's unit.
    Within(f64),
    /// At most this value, whatever the reference.
    Below(f64),
    /// At least this value, whatever the reference.
    Least(f64),
}

/// One measured number.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it belongs to.
    pub section: String,
    /// What was measured.
    pub name: String,
    /// The one that is judged: the best of all runs where nothing else is said.
    pub value: f64,
    /// The middle of all runs.
    pub median: f64,
    /// Unit of the value.
    pub unit: &'static str,
    /// What it is compared with, from the same run.
    pub reference: Option<Reference>,
    /// Value over reference; of runs that were made in turn, the middle of their ratios.
    pub ratio: Option<f64>,
    /// How much more than the reference, in the figure's unit; likewise.
    pub more: Option<f64>,
    /// The target, in words.
    pub target: Option<String>,
    /// Whether the target is met; nothing without a target.
    pub met: Option<bool>,
}

/// What a figure is compared with.
#[derive(Clone, Debug, Serialize)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its value, in the figure's unit.
    pub value: f64,
}

impl Figure {
    /// A number on its own.
    pub fn new(name: impl Into<String>, value: f64, median: f64, unit: &'static str) -> Self {
        Self {
            section: String::new(),
            name: name.into(),
            value,
            median,
            unit,
            reference: None,
            ratio: None,
            more: None,
            target: None,
            met: None,
        }
    }

    /// Compared with another figure of the same unit.
    pub fn against(mut self, other: &Figure) -> Self {
        self.ratio = Some(self.value / other.value);
        self.more = Some(self.value - other.value);
        self.reference = Some(Reference {
            name: other.name.clone(),
            value: other.value,
        });
        self
    }

    /// Compared with another figure, run by run: `ours` and `theirs` were made in turn, so
    /// that both of a pair met the machine at the same speed.
    ///
    /// # Errors
    /// Without samples.
    pub fn paired(mut self, other: &Figure, ours: &Samples, theirs: &Samples) -> Result<Self> {
        self = self.against(other);
        self.ratio = Some(ours.pair(theirs, |a, b| a / b).median()?);
        self.more = Some(ours.pair(theirs, |a, b| a - b).median()?);
        Ok(self)
    }

    /// With a target.
    pub fn target(mut self, target: Target) -> Self {
        let more = self.more.unwrap_or(f64::NAN);
        let ratio = self.ratio.unwrap_or(f64::NAN);
        let (words, met) = match target {
            Target::AtMost(times) => (format!("<= {times} x"), ratio <= times),
            Target::AtLeast(times) => (format!(">= {times} x"), ratio >= times),
            Target::Within(most) => (format!("<= +{most} {}", self.unit), more <= most),
            Target::Below(most) => (format!("<= {most} {}", self.unit), self.value <= most),
            Target::Least(least) => (format!(">= {least} {}", self.unit), self.value >= least),
        };
        self.target = Some(words);
        self.met = Some(met);
        self
    }
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// In the order of measurement.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Prints a section's figures and keeps them.
    pub fn section(&mut self, title: &str, mut figures: Vec<Figure>) {
        for figure in &mut figures {
            figure.section = title.to_owned();
        }
        println!("\n{title}");
        println!("{}", table(&figures));
        self.figures.extend(figures);
    }

    /// Writes the figures as JSON.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }

    /// Names of the figures that missed their target.
    pub fn missed(&self) -> Vec<String> {
        self.figures
            .iter()
            .filter(|f| f.met == Some(false))
            .map(|f| format!("{}: {}", f.section, f.name))
            .collect()
    }
}

fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header([
        "",
        "figure",
        "median",
        "unit",
        "compared with",
        "",
        "ratio",
        "target",
        "",
    ]);
    for column in [1, 2, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for f in figures {
        let reference = f.reference.as_ref();
        table.add_row([
            f.name.clone(),
            number(f.value),
            number(f.median),
            f.unit.into(),
            reference.map_or_else(String::new, |r| r.name.clone()),
            reference.map_or_else(String::new, |r| number(r.value)),
            f.ratio.map_or_else(String::new, |r| format!("{r:.2}")),
            f.target.clone().unwrap_or_default(),
            match f.met {
                Some(true) => "met".into(),
                Some(false) => "MISSED".into(),
                None => String::new(),
            },
        ]);
    }
    table
}

fn number(value: f64) -> String {
    if value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else if value.abs() >= 20.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_judged() {
        let floor = Figure::new("floor", 100.0, 110.0, "ns");
        let judge = |value, target| {
            Figure::new("x", value, value, "ns")
                .against(&floor)
                .target(target)
                .met
        };
        assert_eq!(judge(150.0, Target::AtMost(1.5)), Some(true));
        assert_eq!(judge(151.0, Target::AtMost(1.5)), Some(false));
        assert_eq!(judge(399.0, Target::AtLeast(4.0)), Some(false));
        assert_eq!(judge(160.0, Target::Within(60.0)), Some(true));
        assert_eq!(judge(161.0, Target::Within(60.0)), Some(false));
        assert_eq!(judge(9.0, Target::Below(10.0)), Some(true));
        assert_eq!(judge(9.0, Target::Least(10.0)), Some(false));
        assert_eq!(floor.met, None);
    }
}

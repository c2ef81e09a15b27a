//! `test`: checks of form, the unit tests, the tests that need root, and at the end one
//! table and one line that say how it went.

use std::fs;
use std::io::{Read as _, Write as _, stdout};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::ui::seconds;
use crate::{build_ebpf, place, setup, ui};

/// Options of `test`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only tests whose name contains one of these; leaves the checks out.
    filter: Vec<String>,
    /// Only what needs neither root nor the kernel programs.
    #[arg(long, conflicts_with = "root_only")]
    unit: bool,
    /// Only what needs root.
    #[arg(long)]
    root_only: bool,
}

/// Runs all, and says whether all went well. What fails early does not keep the rest
/// from running; the sums are the last line in any case.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let mut table = Table::default();
    let mut ready = false;
    if !arguments.unit {
        place::need_root("test")?;
        ready = prepare(&mut table, "setup", || {
            setup::run(&setup::Arguments::default())
        }) && prepare(&mut table, "kernel programs", || {
            build_ebpf::run(&build_ebpf::Arguments::default())
        });
    }
    if arguments.filter.is_empty() && !arguments.root_only {
        check_form(&mut table);
    }
    if !arguments.root_only {
        println!("\n==> Unit tests");
        let mut command = place::cargo();
        command
            .args(["test", "--workspace", "--no-fail-fast"])
            .args(["--exclude", "balancer-tests", "--"])
            .args(&arguments.filter);
        table.run("unit tests", command)?;
        println!("\n==> The harness' own unit tests and the examples in its documentation");
        let mut command = place::cargo();
        command
            .args([
                "test",
                "--package",
                "balancer-tests",
                "--lib",
                "--no-fail-fast",
            ])
            .arg("--")
            .args(&arguments.filter);
        table.run("harness unit tests", command)?;
    }
    // The tests find the daemon's binary next to their own.
    if ready
        && prepare(&mut table, "build of balancer", || {
            let mut build = place::cargo();
            build.args(["build", "--package", "balancer-agent", "--bin", "balancer"]);
            ui::step("build-test", "Building balancer", &mut build)
        })
    {
        let (web, kernel) = suites()?;
        for (title, suites, threads) in [
            ("the kernel program", kernel, 1),
            ("the web tier", web, WEB_THREADS),
        ] {
            println!("\n==> Tests with namespaces and {title}");
            let mut command = place::cargo();
            command.args(["test", "--package", "balancer-tests", "--no-fail-fast"]);
            for suite in suites {
                command.args(["--test", &suite]);
            }
            command
                .args(["--", &format!("--test-threads={threads}")])
                .args(&arguments.filter);
            table.run(&format!("root tests of {title}"), command)?;
        }
    }
    table.print();
    let (passed, failed, skipped) = table.sums();
    if passed + failed == 0 {
        println!("no test has such a name");
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0 && passed > 0)
}

/// Tests of the web tier at a time: each has a namespace of its own, and most of them wait
/// most of the time.
const WEB_THREADS: usize = 3;

/// The suites with root's tests: of the web tier, and the others, which share devices and
/// the kernel's tables and run one test after the other.
fn suites() -> Result<(Vec<String>, Vec<String>)> {
    let mut names = Vec::new();
    for entry in fs::read_dir(place::root().join("tests/tests"))? {
        let path = entry?.path();
        // One file, or a folder with its parts.
        let file = path.extension().is_some_and(|extension| extension == "rs");
        if file || path.join("main.rs").is_file() {
            names.extend(
                path.file_stem()
                    .and_then(|stem| stem.to_str())
                    .map(str::to_owned),
            );
        }
    }
    names.sort_unstable();
    Ok(names
        .into_iter()
        .partition(|name| name.starts_with("http_") || name.ends_with("ajp")))
}

/// Does what the tests need; when that fails, shows why and counts it as failed.
fn prepare(table: &mut Table, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
    let begin = Instant::now();
    let result = work();
    if let Err(error) = &result {
        println!("{error:#}");
        table.failed(name, begin.elapsed());
    }
    result.is_ok()
}

/// Format, lints and, where cargo-deny is there, licenses and sources. A check that
/// fails counts as failed; one that passes is no test.
fn check_form(table: &mut Table) {
    println!("==> Checks");
    let checks: [(&str, &str, &[&str]); 3] = [
        ("format", "fmt", &["fmt", "--all", "--check"]),
        (
            "lints",
            "clippy",
            &["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"],
        ),
        (
            "licenses",
            "deny",
            &["deny", "check", "bans", "licenses", "sources"],
        ),
    ];
    for (name, component, arguments) in checks {
        let there = place::cargo()
            .args([component, "--version"])
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|output| output.status.success());
        if !there {
            println!(
                "    {name}: left out, cargo {component} is not installed (`cargo install --locked \
                 cargo-{component} --root {}` would do)",
                place::tools().display()
            );
            table.left_out(name);
            continue;
        }
        let begin = Instant::now();
        let title = format!("cargo {}", arguments.join(" "));
        match ui::step(component, &title, place::cargo().args(arguments)) {
            Ok(()) => table.good_check(name, begin.elapsed()),
            Err(error) => {
                println!("{error:#}");
                table.failed(name, begin.elapsed());
            }
        }
    }
}

#[derive(Default)]
struct Table {
    rows: Vec<Row>,
}

struct Row {
    suite: String,
    time: Duration,
    result: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// A suite with its counts.
    Counts(Counts),
    /// A check that passed.
    Good,
    /// A check, a build or a suite that failed without counts.
    Failed,
    /// A check whose program is not installed.
    LeftOut,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Table {
    fn good_check(&mut self, suite: &str, time: Duration) {
        self.push(suite, time, Outcome::Good);
    }

    fn failed(&mut self, suite: &str, time: Duration) {
        self.push(suite, time, Outcome::Failed);
    }

    fn left_out(&mut self, suite: &str) {
        self.push(suite, Duration::ZERO, Outcome::LeftOut);
    }

    fn push(&mut self, suite: &str, time: Duration, result: Outcome) {
        self.rows.push(Row {
            suite: suite.to_owned(),
            time,
            result,
        });
    }

    /// Runs `cargo test`, passes its output on as it comes, and notes every suite.
    fn run(&mut self, name: &str, mut command: Command) -> Result<()> {
        let (mut reader, writer) = std::io::pipe()?;
        let begin = Instant::now();
        // One pipe for both: a suite's heading and its result must stay in order.
        let mut child = command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()?;
        drop(command);

        let mut suites = Suites::new(begin);
        let mut line = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            let n = reader.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            stdout().write_all(&buffer[..n])?;
            stdout().flush()?;
            for &byte in &buffer[..n] {
                if byte == b'\n' {
                    suites.line(&String::from_utf8_lossy(&line), Instant::now());
                    line.clear();
                } else {
                    line.push(byte);
                }
            }
        }
        let status = child.wait()?;
        let failures_seen = suites.end(Instant::now(), &mut self.rows);
        if !status.success() && !failures_seen {
            // It did not compile, or a suite died without a word.
            self.failed(&format!("{name} ({status})"), begin.elapsed());
        }
        Ok(())
    }

    fn sums(&self) -> (u64, u64, u64) {
        let mut sums = (0, 0, 0);
        for row in &self.rows {
            match row.result {
                Outcome::Counts(counts) => {
                    sums.0 += counts.passed;
                    sums.1 += counts.failed;
                    sums.2 += counts.skipped;
                }
                Outcome::Failed => sums.1 += 1,
                Outcome::Good | Outcome::LeftOut => {}
            }
        }
        sums
    }

    fn print(&self) {
        let width = self.rows.iter().map(|row| row.suite.len()).max();
        let width = width.unwrap_or(0).max("suite".len());
        println!("\n{:<width$}  passed  failed  skipped      time", "suite");
        for row in &self.rows {
            let time = seconds(row.time);
            let (suite, result) = (&row.suite, row.result);
            match result {
                Outcome::Counts(Counts {
                    passed,
                    failed,
                    skipped,
                }) => {
                    println!("{suite:<width$}  {passed:>6}  {failed:>6}  {skipped:>7}  {time:>8}");
                }
                Outcome::Good => println!("{suite:<width$}  {:<24}{time:>8}", "good"),
                Outcome::Failed => println!("{suite:<width$}  {:<24}{time:>8}", "FAILED"),
                Outcome::LeftOut => println!("{suite:<width$}  left out: not installed"),
            }
        }
    }
}

/// Reads the suites and their results from what `cargo test` prints.
struct Suites {
    current: Option<String>,
    begin: Instant,
    rows: Vec<Row>,
}

impl Suites {
    fn new(begin: Instant) -> Self {
        Self {
            current: None,
            begin,
            rows: Vec::new(),
        }
    }

    fn line(&mut self, line: &str, now: Instant) {
        if let Some(suite) = heading(line) {
            self.give_up(now);
            self.current = Some(suite);
            self.begin = now;
        } else if let Some(counts) = result(line) {
            let suite = self.current.take().unwrap_or_else(|| "tests".to_owned());
            // Suites without tests would only hide the others.
            if counts != Counts::default() {
                self.rows.push(Row {
                    suite,
                    time: now - self.begin,
                    result: Outcome::Counts(counts),
                });
            }
        }
    }

    /// A suite that has begun and has no result when the next one begins has died.
    fn give_up(&mut self, now: Instant) {
        if let Some(suite) = self.current.take() {
            self.rows.push(Row {
                suite: format!("{suite} (died)"),
                time: now - self.begin,
                result: Outcome::Failed,
            });
        }
    }

    /// Moves the rows over, and says whether one of them failed.
    fn end(mut self, now: Instant, into: &mut Vec<Row>) -> bool {
        self.give_up(now);
        let failed = self.rows.iter().any(|row| match row.result {
            Outcome::Counts(counts) => counts.failed > 0,
            Outcome::Failed => true,
            Outcome::Good | Outcome::LeftOut => false,
        });
        into.append(&mut self.rows);
        failed
    }
}

/// `     Running unittests src/lib.rs (target/debug/deps/common-0123456789abcdef)`
/// or `   Doc-tests common`.
fn heading(line: &str) -> Option<String> {
    let line = line.trim();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} (documentation)"));
    }
    let (what, binary) = line.strip_prefix("Running ")?.split_once(" (")?;
    let stem = binary.strip_suffix(')')?.rsplit('/').next()?;
    let (name, _hash) = stem.rsplit_once('-')?;
    let kind = match what.strip_prefix("unittests ") {
        Some("src/lib.rs") => " (unit)",
        Some(_) => " (unit, binary)",
        None => "",
    };
    Some(format!("{name}{kind}"))
}

/// `test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; ...`
fn result(line: &str) -> Option<Counts> {
    // A test may leave its own output without an end of line before it.
    let (_, rest) = line.split_once("test result: ")?;
    let (_, counts) = rest.split_once(". ")?;
    let count = |word: &str| {
        let mut parts = counts.split("; ");
        parts.find_map(|part| part.strip_suffix(word)?.trim().parse().ok())
    };
    Some(Counts {
        passed: count("passed")?,
        failed: count("failed")?,
        skipped: count("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<Row>, bool) {
        let now = Instant::now();
        let mut suites = Suites::new(now);
        text.lines().for_each(|line| suites.line(line, now));
        let mut rows = Vec::new();
        let failed = suites.end(now, &mut rows);
        (rows, failed)
    }

    #[test]
    fn suites_and_results_are_read() {
        let (rows, failed) = read(
            "   Compiling common v0.1.0\n\
             \x20    Running unittests src/lib.rs (target/debug/deps/common-0123456789abcdef)\n\
             test a ... ok\n\
             test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s\n\
             \x20    Running tests/harness.rs (target/debug/deps/harness-0123456789abcdef)\n\
             noise test result: FAILED. 3 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n\
             \x20  Doc-tests common\n\
             test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert!(failed);
        let table = Table { rows };
        assert_eq!(table.rows.len(), 2);
        assert_eq!(table.rows[0].suite, "common (unit)");
        assert_eq!(table.rows[1].suite, "harness");
        assert_eq!(table.sums(), (5, 4, 1));
    }

    #[test]
    fn a_suite_that_dies_counts_as_failed() {
        let (rows, failed) = read(
            "     Running tests/a.rs (target/debug/deps/a-0123456789abcdef)\n\
             test one ... ok\n\
             \x20    Running tests/b.rs (target/debug/deps/b-0123456789abcdef)\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n",
        );
        assert!(failed);
        assert_eq!(rows[0].suite, "a (died)");
        assert_eq!(Table { rows }.sums(), (1, 1, 0));
    }

    #[test]
    fn checks_count_only_when_they_fail() {
        let mut table = Table::default();
        table.good_check("format", Duration::ZERO);
        table.left_out("licenses");
        assert_eq!(table.sums(), (0, 0, 0));
        table.failed("lints", Duration::ZERO);
        assert_eq!(table.sums(), (0, 1, 0));
    }
}

//! How long steps show themselves: a spinner with the last line of output and the time
//! that has passed; plain lines where there is no terminal, or `CI` is set.

use std::collections::VecDeque;
use std::env;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _, stderr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::place;

/// How many lines of a failed step's output are shown.
const TAIL: usize = 40;
/// How often a plain step says that it is still at it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether there is somebody to look at a spinner.
pub fn lively() -> bool {
    let ci = env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    stderr().is_terminal() && !ci
}

/// Runs a command that takes long. Its output goes to `target/xtask/NAME.log`; when it
/// fails, the end of it is shown.
pub fn step(name: &str, title: &str, command: &mut Command) -> Result<()> {
    let log = log_path(name)?;
    let mut file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    writeln!(file, "{command:?}\n")?;

    let (reader, writer) = std::io::pipe()?;
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    // The command keeps its ends of the pipe; only the child may, for its end to be seen.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = channel();
    let listener = thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let show = Show::begin(title);
    let mut tail = VecDeque::new();
    let mut said = Instant::now();
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                writeln!(file, "{line}")?;
                show.line(&line);
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if said.elapsed() > PATIENCE {
            said = Instant::now();
            show.still(begin.elapsed(), tail.back().map_or("", String::as_str));
        }
    }
    let status = child.wait()?;
    // It has ended: the channel is closed.
    let _ = listener.join();
    show.end(title, begin.elapsed(), status.success());
    if !status.success() {
        let shown: Vec<String> = tail.iter().map(|line| format!("    {line}")).collect();
        bail!(
            "{title} failed ({status}); the end of {}:\n{}",
            log.display(),
            shown.join("\n")
        );
    }
    Ok(())
}

/// Where a step's output goes.
pub fn log_path(name: &str) -> Result<PathBuf> {
    let dir = place::target().join("xtask");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir.join(format!("{name}.log")))
}

/// A duration for people.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

enum Show {
    Spinner(ProgressBar),
    Plain,
}

impl Show {
    fn begin(title: &str) -> Self {
        if !lively() {
            eprintln!("==> {title} ...");
            return Self::Plain;
        }
        let bar = ProgressBar::new_spinner().with_prefix(title.to_owned());
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg:.dim}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self::Spinner(bar)
    }

    fn line(&self, line: &str) {
        if let Self::Spinner(bar) = self
            && !line.trim().is_empty()
        {
            bar.set_message(line.trim().to_owned());
        }
    }

    fn still(&self, time: Duration, line: &str) {
        if let Self::Plain = self {
            eprintln!("    {:.0} s: {}", time.as_secs_f64(), line.trim());
        }
    }

    fn end(&self, title: &str, time: Duration, good: bool) {
        let word = if good { "done" } else { "failed" };
        match self {
            Self::Spinner(bar) => {
                bar.finish_and_clear();
                eprintln!("==> {title}: {word} in {}", seconds(time));
            }
            Self::Plain => eprintln!("    {word} in {}", seconds(time)),
        }
    }
}

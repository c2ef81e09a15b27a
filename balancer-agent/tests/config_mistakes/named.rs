//! What a file names and that can't be used: certificates, keys, authorities, document
//! roots, places for logs. `check`, a start and a reload look at it with the same code.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use balancer_agent::app;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use super::http::{BASE, FILES, marked};

/// As in `http.rs`; every mark is a place where the same has to be said.
type Row = (&'static str, &'static str, &'static str, &'static str);

const QUEUE: &str = "[pool.queue]\nlength = 100";
const STICKY: &str = "type = \"route\"\n\n[pool.queue]\nlength = 100";
const PEM: &str = "a PEM file with the certificate and its chain";
const KEY: &str = "a PEM file with the certificate's private key";
const AUTHORITIES: &str = "a PEM file with the certificates of authorities";
const ROOT: &str = "a directory that the agent may read";
/// The certificate of the first frontend.
const PAIR: &str = "certificate = \"@/site.pem\"\nkey = \"@/site.key\"";

const DIRECTORY: &str = "a directory that the agent may read and write, or may make";

/// A pool whose sessions are in the group `g`, and the group, which is on disk.
macro_rules! learn {
    () => {
        "type = \"learn\"\ncookie = \"S\"\ngroup = \"g\"\n"
    };
}
macro_rules! group {
    () => {
        "[[session.group]]\nname = \"g\"\nmanager = \"persistent\""
    };
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    // Towards clients.
    ("\"@/site.pem\"", "^\"@/junk.pem\"", "`certificate` \"@/junk.pem\" holds no certificate in PEM form", PEM),
    ("\"@/site.pem\"", "^\"@/site.key\"", "`certificate` \"@/site.key\" holds no certificate in PEM form", PEM),
    ("\"@/site.pem\"", "^\"@/cut.pem\"", "`certificate` \"@/cut.pem\" is not PEM", PEM),
    ("\"@/site.pem\"", "^\"@/broken.pem\"", "`certificate` \"@/broken.pem\" does not begin with an X.509 certificate", PEM),
    ("\"@/site.key\"", "^\"@/junk.key\"", "`key` \"@/junk.key\" holds no private key in PEM form", KEY),
    ("\"@/site.key\"", "^\"@/locked.key\"", "`key` \"@/locked.key\" holds no private key in PEM form", "not encrypted"),
    ("\"@/site.key\"", "^\"@/broken.key\"", "`key` \"@/broken.key\" holds a key that can't be used", KEY),
    ("\"@/site.key\"", "^\"@/other.key\"", "`key` \"@/other.key\" is not the key of the certificate in @/site.pem", KEY),
    (PAIR, "certificate = \"@/site.pem\"\nkey = \"@/site.key\"\n[[frontend.tls.certificate]]\ncertificate = \"@/other.pem\"\nkey = ^\"@/site.key\"", "`key` \"@/site.key\" is not the key of the certificate in @/other.pem", KEY),
    ("minimum = \"1.2\"", "client_auth = \"required\"\nclient_authorities = ^\"@/junk.pem\"", "`client_authorities` \"@/junk.pem\" holds no certificate", AUTHORITIES),
    ("minimum = \"1.2\"", "client_auth = \"optional\"\nclient_authorities = ^\"@/broken.pem\"", "`client_authorities` \"@/broken.pem\" holds a certificate that can't be an authority", AUTHORITIES),
    // Towards backends.
    (QUEUE, "[pool.tls]\nauthorities = ^\"@/junk.pem\"", "`authorities` \"@/junk.pem\" holds no certificate", AUTHORITIES),
    (QUEUE, "[pool.tls]\nauthorities = ^\"@/broken.pem\"", "`authorities` \"@/broken.pem\" holds a certificate that can't be an authority", AUTHORITIES),
    (QUEUE, "[pool.tls]\nverify = false\ncertificate = ^\"@/junk.pem\"\nkey = \"@/site.key\"", "`certificate` \"@/junk.pem\" holds no certificate", PEM),
    (QUEUE, "[pool.tls]\nverify = false\ncertificate = \"@/site.pem\"\nkey = ^\"@/other.key\"", "`key` \"@/other.key\" is not the key of the certificate", KEY),
    // Files and logs.
    ("\"@/www\"", "^\"@/wwww\"", "`root` \"@/wwww\" can't be opened: No such file", ROOT),
    (FILES, "files = { root = ^\"@/junk.pem\" }", "`root` \"@/junk.pem\" can't be opened: Not a directory", ROOT),
    ("[[frontend]]\nname = \"plain\"", "[[frontend.site]]\nhosts = [\"a.example\"]\nroot = ^\"@/none\"\n\n[[frontend]]\nname = \"plain\"", "`root` \"@/none\" can't be opened: No such file", ROOT),
    ("\"@/access.log\"", "^\"@/none/access.log\"", "`file` \"@/none/access.log\" can't be made: @/none: No such file", "a directory that is there"),
    ("\"@/access.log\"", "^\"@/junk.pem/access.log\"", "`file` \"@/junk.pem/access.log\" can't be made: @/junk.pem: not a directory", "a directory that is there"),
    // Sessions.
    (STICKY, concat!(learn!(), "[session]\ndirectory = ^\"@/junk.pem\"\n", group!()), "`directory` \"@/junk.pem\" can't be used: not a directory", DIRECTORY),
    (STICKY, concat!(learn!(), "[session]\ndirectory = ^\"@/junk.pem/below/it\"\n", group!()), "`directory` \"@/junk.pem/below/it\" can't be made: @/junk.pem: not a directory", DIRECTORY),
    (STICKY, concat!(learn!(), "[session]\ndirectory = ^\"@/odd\"\n", group!()), "`directory` \"@/odd\" can't be used: @/odd/sessions.redb is not a regular file", "another `directory`"),
    (STICKY, concat!(learn!(), "[session]\ndirectory = ^\"@/foreign\"\n", group!()), "`directory` \"@/foreign\" can't be used: @/foreign/sessions.redb is a database, and not one of balancer's sessions", "the file moved away"),
    // Each at its own place, and all together.
    (QUEUE, "[pool.tls]\nauthorities = ^\"@/junk.pem\"\n[[pool.backend]]\nname = \"s0\"\naddress = \"127.0.0.1:8000\"\n[[frontend]]\nname = \"x\"\nmode = \"http\"\naddress = \"127.0.0.1:81\"\npool = \"more\"\n[[pool]]\nname = \"more\"\n[pool.tls]\nauthorities = ^\"@/junk.pem\"", "`authorities` \"@/junk.pem\" holds no certificate", AUTHORITIES),
];

/// What is only odd.
#[rustfmt::skip]
const WARNINGS: &[Row] = &[
    ("\"@/site.pem\"\nkey = \"@/site.key\"", "^\"@/late.pem\"\nkey = \"@/late.key\"", "`certificate` \"@/late.pem\" expired on", "valid now"),
    (QUEUE, "[pool.tls]\nverify = false\ncertificate = ^\"@/late.pem\"\nkey = \"@/late.key\"", "`certificate` \"@/late.pem\" expired on", "valid now"),
    (STICKY, concat!(learn!(), "[session]\ndirectory = ^\"@/damaged\"\n", group!()), "`directory` \"@/damaged\" has a damaged file: @/damaged/sessions.redb", "a whole file, or none"),
    (PAIR, "certificate = \"@/site.pem\"\nkey = \"@/site.key\"\n[[frontend.tls.certificate]]\ncertificate = ^\"@/other.pem\"\nkey = \"@/other.key\"", "`certificate` \"@/other.pem\" is for www.example.org, for which one before it is already used", "one certificate for each name"),
];

/// A directory with certificates that are, and files that are none.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        folder.file("ca.pem", &ca.pem());
        for name in ["site", "other", "late"] {
            let mut params = CertificateParams::new(vec!["www.example.org".into()]).unwrap();
            if name == "late" {
                params.not_before = rcgen::date_time_ymd(2001, 1, 1);
                params.not_after = rcgen::date_time_ymd(2002, 1, 1);
            }
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            folder.file(&format!("{name}.pem"), &certificate.pem());
            folder.file(&format!("{name}.key"), &key.serialize_pem());
        }
        let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        folder.file("junk.pem", "a certificate");
        folder.file("junk.key", "a key");
        folder.file("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
        folder.file("broken.pem", &pem("CERTIFICATE"));
        folder.file("broken.key", &pem("PRIVATE KEY"));
        folder.file("locked.key", &pem("ENCRYPTED PRIVATE KEY"));
        for directory in ["www", "odd/sessions.redb", "damaged", "foreign"] {
            fs::create_dir_all(folder.0.path().join(directory)).unwrap();
        }
        folder.file("damaged/sessions.redb", "not a database");
        let foreign = folder.0.path().join("foreign/sessions.redb");
        let database = redb::Database::create(foreign).unwrap();
        let write = database.begin_write().unwrap();
        let table = redb::TableDefinition::<u64, u64>::new("stock");
        drop(write.open_table(table).unwrap());
        write.commit().unwrap();
        folder
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The text with this directory's path for every `@`.
    fn fill(&self, text: &str) -> String {
        text.replace('@', self.0.path().to_str().unwrap())
    }

    /// Writes [`BASE`], changed, and says where the marks were.
    fn write(&self, from: &str, to: &str) -> Vec<(usize, usize)> {
        assert!(BASE.contains(from), "{from}");
        let mut text = self.fill(&BASE.replacen(from, to, 1));
        let mut places = Vec::new();
        while let Some(at) = text.rfind('^') {
            // From the end, so that those before are where they will be.
            let (before, after) = text.split_at(at);
            let (line, column, _) = marked(&format!("{}^", before.replace('^', "")));
            places.push((line, column));
            text = format!("{before}{}", &after[1..]);
        }
        places.reverse();
        self.file("balancer.toml", &text);
        places
    }

    fn check(
        &self,
    ) -> Result<balancer_agent::config::Warnings, balancer_agent::config::ConfigError> {
        app::check(&self.0.path().join("balancer.toml"))
    }

    fn names(&self) -> Vec<std::ffi::OsString> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }
}

#[test]
fn what_can_t_be_used_is_said_at_its_place() {
    let folder = Folder::new();
    folder.write("[http]", "[http]");
    let before = folder.names();
    assert_eq!(folder.check().unwrap().to_string(), "");
    let mut failures = String::new();
    for (from, to, message, expected) in ROWS {
        let places = folder.write(from, to);
        let message = folder.fill(message);
        let error = match folder.check() {
            Err(error) => error,
            Ok(_) => {
                writeln!(failures, "{to}: accepted").unwrap();
                continue;
            }
        };
        let found: Vec<_> = error
            .problems()
            .iter()
            .map(|p| (p.line, p.column))
            .collect();
        let said = error
            .problems()
            .iter()
            .all(|p| p.message.contains(&message) && p.expected.contains(expected));
        if found != places || !said {
            writeln!(failures, "{to}: wanted {places:?} {message}\n  {error}").unwrap();
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
    assert_eq!(folder.names(), before, "nothing was made");
}

#[test]
fn what_is_odd_in_files_is_said_at_its_place() {
    let folder = Folder::new();
    for (from, to, message, expected) in WARNINGS {
        let places = folder.write(from, to);
        let said = folder.check().unwrap_or_else(|error| panic!("{error}"));
        let [problem] = said.problems() else {
            panic!("{to}: not one warning:\n{said}");
        };
        assert_eq!([(problem.line, problem.column)], places[..], "{said}");
        assert!(problem.message.contains(&folder.fill(message)), "{said}");
        assert!(problem.expected.contains(expected), "{said}");
    }
}

#[test]
fn all_that_can_t_be_used_comes_together() {
    let folder = Folder::new();
    let text = BASE
        .replacen("site.pem", "junk.pem", 1)
        .replacen("site.key", "junk.key", 1)
        .replacen("@/www", "@/none", 1)
        .replacen("@/access.log", "@/none/log", 1)
        .replacen(QUEUE, "[pool.tls]\nauthorities = \"@/broken.pem\"", 1);
    folder.file("balancer.toml", &folder.fill(&text));
    let error = folder.check().unwrap_err();
    let lines: Vec<usize> = error.problems().iter().map(|p| p.line).collect();
    assert_eq!(lines.len(), 5, "{error}");
    assert!(lines.is_sorted(), "in the order of the file: {error}");
}

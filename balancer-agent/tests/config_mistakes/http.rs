//! The mistakes of the web tier.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use balancer_agent::config;

use super::Judged;

/// `@` stands for a directory with the files that [`Folder::new`] makes.
pub(super) const BASE: &str = r#"[http]
threads = 2

[[frontend]]
name = "web"
mode = "http"
address = "0.0.0.0:443"
hsts = "max-age=31536000"

[frontend.tls]
minimum = "1.2"

[[frontend.tls.certificate]]
certificate = "@/site.pem"
key = "@/site.key"

[frontend.limits]
headers = 100

[frontend.timeouts]
headers = "10s"

[frontend.log]
file = "@/access.log"

[[frontend.site]]
hosts = ["www.example.org", "*.example.com"]

[[frontend.site.mount]]
pattern = "/app/*"
pool = "app"

[[frontend.site.exclude]]
pattern = "/app/images/*"
pool = "app"

[frontend.site.fallback]
files = { root = "@/www" }

[[frontend]]
name = "plain"
mode = "http"
address = "127.0.0.1:80"
pool = "app"

[[pool]]
name = "app"
balance = "least-connections"

[pool.sticky]
type = "route"

[pool.queue]
length = 100

[[pool.backend]]
name = "s1"
address = "127.0.0.1:8081"

[[pool.backend]]
name = "s2"
address = "[::1]:8082"
"#;

/// What is replaced in [`BASE`], by what, part of the message, part of the
/// expectation. In the replacement, `^` is where the problem has to be.
type Row = (&'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const STRUCTURE: &[Row] = &[
    ("threads", "^thread", "unknown key `thread`", "`threads`"),
    ("[http]", "[^htpp]", "unknown key `htpp`", "`http`"),
    ("hsts", "^htst", "unknown key `htst`", "`hsts`"),
    ("hsts", "^key_file = \"/k\"\nhsts", "unknown key `key_file`", "it in `[pool.sticky]`"),
    ("hsts", "^mount = []\nhsts", "unknown key `mount`", "it in `[[frontend.site.mount]]`"),
    ("hsts", "^hosts = [\"a\"]\nhsts", "unknown key `hosts`", "it in `[[frontend.site]]`"),
    ("hsts", "^retries = 3\nhsts", "unknown key `retries`", "it in `[pool.retries]`"),
    ("length", "^head_bytes", "unknown key `head_bytes`", "it in `[frontend.limits]`"),
    ("length", "^trusted_proxies", "unknown key `trusted_proxies`", "it in `[[frontend]]`"),
    ("length", "^drain_timeout", "unknown key `drain_timeout`", "it in `[http]`"),
    ("[frontend.tls]\nminimum = \"1.2\"\n\n[[frontend.tls.certificate]]\ncertificate = \"@/site.pem\"\nkey = \"@/site.key\"", "tls = ^true", "`tls` is a boolean", "`[frontend.tls]` or `[pool.tls]`"),
    ("[frontend.limits]", "^[[frontend.limits]]", "`limits` is an array", "`[frontend.limits]`"),
    ("[frontend.site.fallback]", "^[[frontend.site.fallback]]", "`fallback` is an array", "`[frontend.site.fallback]`"),
    ("[[frontend.site.mount]]", "^[frontend.site.mount]", "`mount` is a single table", "`[[frontend.site.mount]]`"),
    ("{ root = \"@/www\" }", "^\"@/www\"", "`files` is a string", "`files = { .. }`"),
    ("pool = \"app\"\n\n[[frontend.site.ex", "pool = \"app\"\nrewrite = { request_headers = ^\"X-A\" }\n\n[[frontend.site.ex", "`request_headers` is a string", "an array of tables"),
];

#[rustfmt::skip]
const FRONTENDS: &[Row] = &[
    ("threads = 2", "threads = ^0", "`threads` 0 is out of range", "from 1 to 1024"),
    ("threads = 2", "learned_max = ^10", "`learned_max` 10 is out of range", "from 1000 to 100000000"),
    ("threads = 2", "max_connections = ^\"many\"", "`max_connections` is the string \"many\"", "an integer from 1 to 10000000"),
    ("threads = 2", "drain_timeout = ^\"2d\"", "`drain_timeout` \"2d\" is too long", "from 100ms to 1d"),
    ("\"0.0.0.0:443\"", "^\"224.0.0.1:443\"", "`address` \"224.0.0.1:443\" is a multicast address", "[::] for all of both"),
    ("\"0.0.0.0:443\"", "^\"example.org:443\"", "`address` \"example.org:443\" is a name", "names are not resolved"),
    ("\"0.0.0.0:443\"", "^\"[fe80::1]:443\"", "`address` \"[fe80::1]:443\" is a link-local IPv6 address", "an address of this host"),
    ("\"0.0.0.0:443\"", "^\"0.0.0.0:0\"", "`address` \"0.0.0.0:0\" has port 0", "from 1 to 65535"),
    ("mode = \"http\"\naddress = \"0", "mode = ^\"https\"\naddress = \"0", "`mode` \"https\" is not known", "\"xdp\" or \"http\""),
    ("hsts = \"max-age=31536000\"", "hsts = ^\"31536000\"", "`hsts` \"31536000\" has the unknown directive `31536000`", "\"max-age=31536000; includeSubDomains\""),
    ("hsts = \"max-age=31536000\"", "hsts = ^\"max-age=1y\"", "has no number of seconds as `max-age`", "max-age=31536000"),
    ("hsts = \"max-age=31536000\"", "hsts = ^\"max-age=1; max-age=2\"", "has two `max-age`", "max-age=31536000"),
    ("hsts = \"max-age=31536000\"", "hsts = ^\"preload\"", "`hsts` \"preload\" has no `max-age`", "max-age=31536000"),
    ("address = \"127.0.0.1:80\"", "address = \"127.0.0.1:80\"\nhsts = ^\"max-age=1\"", "`hsts` on a frontend without TLS", "a `[frontend.tls]`"),
    ("hsts", "redirect_https = ^8443\nhsts", "`redirect_https` on a frontend with TLS", "it on the plain frontend"),
    ("address = \"127.0.0.1:80\"\npool = \"app\"", "address = \"127.0.0.1:80\"\nredirect_https = ^0", "`redirect_https` 0 is out of range", "from 1 to 65535"),
    (PLAIN, "[[frontend]]\nname = \"plain\"\nmode = \"http\"\naddress = \"127.0.0.1:80\"\nredirect_https = 443\npool = ^\"app\"", "nothing comes here: `redirect_https` answers every request", "on the frontend with TLS alone"),
    (PLAIN, "[[frontend]]\nname = \"plain\"\nmode = \"http\"\naddress = \"127.0.0.1:80\"\npool = ^\"app\"\n[[frontend.site]]\npool = \"app\"", "the frontend's `pool` gets nothing", "`pool` in that site"),
    (PLAIN, "^[[frontend]]\nname = \"plain\"\nmode = \"http\"\naddress = \"127.0.0.1:80\"", "a frontend has neither `pool` nor sites", "`pool = \"web\"`"),
    (PLAIN, "[[frontend]]\nname = \"plain\"\nmode = \"xdp\"\naddress = \"192.0.2.1:80\"\npool = \"steered\"\n^[frontend.limits]\n[xdp]\ninterfaces = [\"eth0\"]\n[[pool]]\nname = \"steered\"\n[[pool.backend]]\nname = \"s\"\naddress = \"192.0.2.9:80\"", "`limits` belongs to an http frontend, and this one's mode is xdp", "`mode = \"http\"`, or no `limits`"),
    (PLAIN, "[[frontend]]\nname = \"plain\"\naddress = \"192.0.2.1:80\"\npool = \"steered\"\nredirect_https = ^443\n[xdp]\ninterfaces = [\"eth0\"]\n[[pool]]\nname = \"steered\"\n[[pool.backend]]\nname = \"s\"\naddress = \"192.0.2.9:80\"", "`redirect_https` belongs to an http frontend", "`mode = \"http\"`, or no `redirect_https`"),
    ("hsts", "protocol = ^\"tcp\"\nhsts", "`protocol` belongs to a frontend in xdp mode", "HTTP goes over TCP"),
    ("hsts", "http1 = ^false\nhttp2 = false\nhsts", "neither `http1` nor `http2` is on", "at least one of them"),
    ("hsts", "http2 = ^\"on\"\nhsts", "`http2` is the string \"on\"", "true or false"),
    ("hsts", "x_forwarded = ^1\nhsts", "`x_forwarded` is the integer 1", "true or false"),
    ("hsts", "proxy_protocol_from = ^[]\nhsts", "`proxy_protocol_from` is an empty array", "the networks of the proxies in front"),
    ("hsts", "proxy_protocol_from = [^\"10.0.0.1/8\"]\nhsts", "\"10.0.0.1/8\" has bits behind its prefix", "the network itself, \"10.0.0.0/8\""),
    ("hsts", "trusted_proxies = [^\"10.0.0.0/33\"]\nhsts", "`trusted_proxies` \"10.0.0.0/33\" is no network", "\"10.0.0.0/8\", or an address"),
    ("hsts", "trusted_proxies = ^\"10.0.0.0/8\"\nhsts", "`trusted_proxies` is the string \"10.0.0.0/8\"", "an array of networks"),
    ("hsts", "trusted_proxies = [^\"::ffff:10.0.0.1\"]\nhsts", "\"::ffff:10.0.0.1\" is of IPv4-mapped IPv6 addresses", "the IPv4 addresses themselves"),
    ("hsts", "trusted_proxies = [\"10.0.0.1\", ^\"10.0.0.1/32\"]\nhsts", "network 10.0.0.1/32 is twice in `trusted_proxies`", "each network once"),
    ("hsts", "via = ^\"my proxy\"\nhsts", "`via` \"my proxy\" has the character ` `", "such as \"balancer\""),
    ("hsts", "via = ^\"\"\nhsts", "`via` \"\" is empty", "such as \"balancer\""),
    ("hsts", "request_id = ^\"X Id\"\nhsts", "`request_id` \"X Id\" is no name of a header", "\"X-Frontend\""),
    ("hsts", "request_id = ^\"Connection\"\nhsts", "`request_id` \"Connection\" belongs to a single connection", "a header of the message"),
    ("hsts", "pool = ^\"aqp\"\nhsts", "there is no pool \"aqp\"", "perhaps \"app\""),
    ("name = \"plain\"", "name = ^\"web\"", "frontend \"web\" is there twice", "a name of its own"),
    ("\"127.0.0.1:80\"", "^\"127.0.0.1:443\"", "127.0.0.1:443 overlaps 0.0.0.0:443, which is answered by frontend \"web\"", "that no other frontend has"),
    ("[[pool]]\nname", "[[frontend]]\nname = \"third\"\nmode = \"http\"\naddress = ^\"127.0.0.1:80\"\npool = \"app\"\n\n[[pool]]\nname", "127.0.0.1:80 is already answered by frontend \"plain\"", "that no other frontend has"),
    ("\"127.0.0.1:80\"", "^\"[::]:443\"", "[::]:443 overlaps 0.0.0.0:443, which is answered by frontend \"web\"", "that no other frontend has"),
    ("\"127.0.0.1:8081\"", "^\"127.0.0.1:80\"", "backend \"s1\" is frontend \"plain\" itself, whose requests it gets", "leads back here"),
    ("\"127.0.0.1:8081\"", "^\"127.0.0.1:443\"", "backend \"s1\" is frontend \"web\" itself", "leads back here"),
    (HEAD, "[xdp]\ninterfaces = [\"eth0\"]\n[[frontend]]\nname = \"v\"\naddress = \"192.0.2.1:443\"\npool = \"v\"\n[[pool]]\nname = \"v\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.1:8443\"\n[[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = ^\"0.0.0.0:443\"", "0.0.0.0:443 overlaps 192.0.2.1:443, which is answered by frontend \"v\", which is steered in the kernel", "that no other frontend has"),
    (HEAD, "[xdp]\ninterfaces = [\"eth0\"]\n[[frontend]]\nname = \"v\"\naddress = \"192.0.2.1:443\"\npool = \"v\"\n[[pool]]\nname = \"v\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.1:443\"\n[[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = ^\"192.0.2.1:443\"", "192.0.2.1:443 is already answered by frontend \"v\", which is steered in the kernel", "that no other frontend has"),
    (HEAD, "[xdp]\ninterfaces = [\"eth0\"]\n[[frontend]]\nname = \"v\"\naddress = \"192.0.2.1:443\"\npool = \"v\"\n[[pool]]\nname = \"v\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.1:443\"\n[[frontend]]\nname = ^\"v\"\nmode = \"http\"\naddress = \"192.0.2.2:443\"", "frontend \"v\" is there twice", "a name of its own"),
];

#[rustfmt::skip]
const TLS: &[Row] = &[
    ("[frontend.tls]\nminimum = \"1.2\"\n\n[[frontend.tls.certificate]]\ncertificate = \"@/site.pem\"\nkey = \"@/site.key\"", "^[frontend.tls]\nminimum = \"1.2\"", "TLS without a certificate", "`[[frontend.tls.certificate]]`"),
    ("[[frontend.tls.certificate]]\ncertificate = \"@/site.pem\"\n", "^[[frontend.tls.certificate]]\n", "a certificate has no `certificate`", "`certificate = \"/etc/balancer/site.pem\"`"),
    ("[[frontend.tls.certificate]]\ncertificate = \"@/site.pem\"\nkey = \"@/site.key\"", "^[[frontend.tls.certificate]]\ncertificate = \"@/site.pem\"", "a certificate has no `key`", "`key = \"/etc/balancer/site.key\"`"),
    ("certificate = \"@/site.pem\"", "certificate = ^\"site.pem\"", "`certificate` \"site.pem\" is a relative path", "\"/etc/balancer/site.pem\""),
    ("\"@/site.pem\"", "^\"@/none.pem\"", "`certificate` \"@/none.pem\" can't be read: No such file", "a file that can be read"),
    ("\"@/site.pem\"", "^\"@/www\"", "`certificate` \"@/www\" is a directory", "a file that can be read"),
    ("\"@/site.pem\"", "^\"/dev/null\"", "`certificate` \"/dev/null\" is not a regular file", "a file that can be read"),
    ("\"@/site.key\"", "^\"@/open.key\"", "\"@/open.key\" is a secret that others can get at: its mode is 0644", "0600 or 0640"),
    ("\"@/site.key\"", "^\"@/group.key\"", "others can get at: its mode is 0660", "0600 or 0640"),
    ("key = \"@/site.key\"", "key = \"@/site.key\"\n^[[frontend.tls.certificate]]\ncertificate = \"@/site.pem\"\nkey = \"@/site.key\"", "certificate @/site.pem is there twice", "each certificate once"),
    ("minimum = \"1.2\"", "minimum = ^\"1.1\"", "`minimum` \"1.1\" is not safe any more", "\"1.2\" or \"1.3\""),
    ("minimum = \"1.2\"", "minimum = ^\"tls1.3\"", "`minimum` \"tls1.3\" is not known", "\"1.2\" or \"1.3\""),
    ("minimum = \"1.2\"", "minimum = ^1.3", "`minimum` is the number 1.3", "\"1.2\" or \"1.3\""),
    ("minimum = \"1.2\"", "client_auth = ^\"required\"", "`client_auth` without `client_authorities`", "`client_authorities = \"/etc/balancer/clients.pem\"`"),
    ("minimum = \"1.2\"", "client_auth = ^\"on\"", "`client_auth` \"on\" is not known", "\"off\" or \"optional\" or \"required\""),
    ("minimum = \"1.2\"", "client_authorities = ^\"@/site.pem\"", "`client_authorities` has no effect without `client_auth`", "`client_auth = \"required\"`"),
];

#[rustfmt::skip]
const LIMITS: &[Row] = &[
    ("headers = 100", "headers = ^0", "`headers` 0 is out of range", "from 1 to 10000"),
    ("headers = 100", "head_bytes = ^100", "`head_bytes` 100 is out of range", "from 1024 to 1048576"),
    ("headers = 100", "target_bytes = ^40_000", "`target_bytes` 40000 is more than `head_bytes` 32768", "at most 32768"),
    ("headers = 100", "target_bytes = ^1", "`target_bytes` 1 is out of range", "from 256"),
    ("headers = 100", "body_bytes = ^0", "`body_bytes` 0 is out of range", ", or false"),
    ("headers = 100", "body_bytes = ^\"100MB\"", "`body_bytes` is the string \"100MB\"", ", or false"),
    ("headers = 100", "connections = ^false", "`connections` is the boolean false", "an integer from 1 to 10000000"),
    ("headers = 100", "connections_per_source = ^true", "`connections_per_source` is the boolean true", ", or false"),
    ("headers = 100", "requests_per_source = ^-1", "`requests_per_source` -1 is out of range", ", or false"),
    ("headers = 100", "requests_per_connection = ^0", "`requests_per_connection` 0 is out of range", ", or false"),
    ("headers = 100", "h2_streams = ^20_000", "`h2_streams` 20000 is out of range", "from 1 to 10000"),
    ("headers = 100", "h2_resets = ^0", "`h2_resets` 0 is out of range", "from 1 to 1000000"),
    ("headers = \"10s\"", "headers = ^10", "`headers` is the integer 10", "a string such as \"10s\""),
    ("headers = \"10s\"", "handshake = ^\"10ms\"", "`handshake` \"10ms\" is too short", "from 100ms to 1d"),
    ("headers = \"10s\"", "keep_alive = ^\"75\"", "`keep_alive` \"75\" has no unit", "\"75s\""),
    ("headers = \"10s\"", "body_idle = ^false", "`body_idle` is the boolean false", "a string such as \"30s\""),
    ("headers = \"10s\"", "body_rate = ^\"256\"", "`body_rate` is the string \"256\"", "from 1 to 1073741824, or false"),
    ("headers = \"10s\"", "send = ^\"25h\"", "`send` \"25h\" is too long", "from 100ms to 1d"),
    ("[frontend.log]\nfile = \"@/access.log\"", "^[frontend.log]\nformat = \"json\"", "a log has no `file`", "`file = \"/var/log/balancer/access.log\"`"),
    ("\"@/access.log\"", "^\"access.log\"", "`file` \"access.log\" is a relative path", "an absolute path"),
    ("\"@/access.log\"", "^\"@/www\"", "`file` \"@/www\" is a directory", "the path of the file itself"),
    ("file =", "format = ^\"xml\"\nfile =", "`format` \"xml\" is not known", "\"combined\" or \"common\" or \"json\""),
    ("file =", "details = ^\"all\"\nfile =", "`details` is the string \"all\"", "true or false"),
];

#[rustfmt::skip]
const SITES: &[Row] = &[
    ("[\"www.example.org\", \"*.example.com\"]", "^[]", "`hosts` is an empty array", "no `hosts` for a site that is for every host"),
    ("[\"www.example.org\", \"*.example.com\"]", "^\"www.example.org\"", "`hosts` is the string \"www.example.org\"", "an array of host names"),
    ("\"*.example.com\"", "^\"*\"", "`hosts` \"*\" is every host", "no `hosts` at all"),
    ("\"*.example.com\"", "^\"\"", "`hosts` \"\" is empty", "\"www.example.org\" or \"*.example.org\""),
    ("\"*.example.com\"", "^\"www*.example.com\"", "has a `*` within it", "as the whole first label"),
    ("\"*.example.com\"", "^\"example.com:8080\"", "`hosts` \"example.com:8080\" has a port", "the name alone, \"example.com\""),
    ("\"*.example.com\"", "^\"https://example.com\"", "\"https://example.com\" is a URL", "a host name such as"),
    ("\"*.example.com\"", "^\"ex ample.com\"", "has the character ` `, which no host has", "a host name such as"),
    ("\"*.example.com\"", "^\"b\u{fc}cher.example\"", "has the character `\u{fc}`, which no host has", "as the DNS has it, in ASCII"),
    ("\"*.example.com\"", "^\"example..com\"", "\"example..com\" has an empty label", "a host name such as"),
    ("\"*.example.com\"", "^\"2001:db8::1\"", "\"2001:db8::1\" has no brackets", "\"[2001:db8::1]\""),
    ("\"*.example.com\"", "^\"[2001:db8::1]:80\"", "\"[2001:db8::1]:80\" has no IPv6 address in its brackets", "without a port"),
    ("\"*.example.com\"", "^\"WWW.example.org\"", "host \"www.example.org\" is twice in a site", "each host once"),
    ("[[frontend]]\nname = \"plain\"", "[[frontend.site]]\nhosts = [\"a.example\", ^\"www.example.org\"]\npool = \"app\"\n\n[[frontend]]\nname = \"plain\"", "host \"www.example.org\" already has a site", "one site for a host"),
    ("[[frontend]]\nname = \"plain\"", "[[frontend.site]]\npool = \"app\"\n\n^[[frontend.site]]\npool = \"app\"\n\n[[frontend]]\nname = \"plain\"", "this site is never reached", "one site for every host"),
    ("[[frontend]]\nname = \"plain\"", "^[[frontend.site]]\nhosts = [\"a.example\"]\n\n[[frontend]]\nname = \"plain\"", "a site has nothing in it", "`pool`, `root`, a `[[frontend.site.mount]]`"),
    ("pattern = \"/app/*\"", "pattern = ^\"app/*\"", "`pattern` \"app/*\" does not begin with `/`", "`*` is any characters"),
    ("pattern = \"/app/*\"", "pattern = ^\"\"", "`pattern` \"\" is empty", "begins with `/`"),
    ("pattern = \"/app/*\"", "pattern = ^[]", "`pattern` is an empty array", "\"/images/*\""),
    ("pattern = \"/app/*\"", "pattern = ^5", "`pattern` is the integer 5", "or an array of them"),
    ("pattern = \"/app/*\"", "pattern = [\"/a\", ^\"/app//b\"]", "\"/app//b\" matches nothing: paths are compared with `//` as one `/`", "single slashes"),
    ("pattern = \"/app/*\"", "pattern = ^\"/app/../b\"", "matches nothing: `.` and `..` are resolved", "the path that is meant"),
    ("pattern = \"/app/*\"", "pattern = ^\"/app;v=1\"", "matches nothing: path parameters are taken off", "without `;`"),
    ("pattern = \"/app/*\"", "pattern = ^\"/my%20app/*\"", "matches nothing: paths are compared decoded", "the characters themselves"),
    ("pattern = \"/app/*\"", "pattern = ^\"/a\\tb\"", "has a control character", "begins with `/`"),
    ("pattern = \"/app/*\"", "pattern = [\"/app/*\", ^\"/app/*\"]", "\"/app/*\" is already mounted in this site", "each pattern once"),
    ("[[frontend.site.mount]]\npattern = \"/app/*\"", "^[[frontend.site.mount]]", "a mount has no `pattern`", "`pattern = \"/images/*\"`"),
    ("pattern = \"/app/*\"\npool = \"app\"", "pattern = \"/app/*\"\nstats = { format = ^\"prop\" }", "`format` \"prop\" is not known", "\"haproxy-csv\" or \"jk-status\""),
    ("pattern = \"/app/*\"\npool = \"app\"", "pattern = \"/app/*\"\nstats = { format = \"jk-status\", allow = [^\"10.0.0.1/9\"] }", "\"10.0.0.1/9\" has bits behind its prefix", "the network itself, \"10.0.0.0/9\""),
    ("[[frontend.site.mount]]\npattern = \"/app/*\"\npool = \"app\"", "pool = \"app\"\n^[[frontend.site.mount]]\npattern = \"/app/*\"", "a mount does nothing", "one of `pool`, `files`, `redirect`, `respond` and `stats`"),
    ("pattern = \"/app/*\"", "pattern = \"/app/*\"\nfiles = ^{ root = \"@/www\" }", "a mount has both `pool` and `files`", "one of `pool`, `files`, `redirect`, `respond` and `stats`"),
    ("pattern = \"/app/*\"\npool = \"app\"", "pattern = \"/app/*\"\npool = ^\"admin\"", "there is no pool \"admin\"", "a `[[pool]]` in this file"),
    ("pattern = \"/app/images/*\"\npool = \"app\"", "pattern = \"/app/images/*\"\npool = ^\"ap\"", "there is no pool \"ap\"", "a `[[pool]]` in this file"),
    ("pattern = \"/app/images/*\"", "pattern = ^\"images\"", "`pattern` \"images\" does not begin with `/`", "`*` is any characters"),
    ("pattern = \"/app/images/*\"", "pattern = [\"/a\", ^\"/a\"]", "\"/a\" is already excluded", "each exclusion once"),
    ("[[frontend.site.exclude]]\npattern = \"/app/images/*\"", "^[[frontend.site.exclude]]", "an exclusion has no `pattern`", "`pattern = \"/images/*\"`"),
    ("pattern = \"/app/*\"", "pattern = \"/app/*\"\ncompress = ^\"gzip\"", "`compress` is the string \"gzip\"", "true, false or the smallest body"),
    ("pattern = \"/app/*\"", "pattern = \"/app/*\"\ncompress = ^0", "`compress` 0 is out of range", "from 1 to 1073741824"),
    ("files = { root = \"@/www\" }", "pattern = ^\"/*\"\nfiles = { root = \"@/www\" }", "a fallback has no pattern", "a `[[frontend.site.mount]]`"),
    ("[frontend.site.fallback]\nfiles = { root = \"@/www\" }", "^[frontend.site.fallback]", "a fallback does nothing", "one of `pool`, `files`"),
    ("hosts = [\"www", "root = ^\"@/www\"\nhosts = [\"www", "the site has both `root` and a fallback", "one of them"),
    ("hosts = [\"www", "pool = ^5\nhosts = [\"www", "`pool` is the integer 5", "a string such as \"web\""),
    ("hosts = [\"www.example.org\", \"*.example.com\"]\n\n[[frontend.site.mount]]\npattern = \"/app/*\"", "pool = ^\"app\"\n\n[[frontend.site.mount]]\npattern = \"/*\"", "the site's `pool` gets nothing", "`pool` in that mount"),
];

#[rustfmt::skip]
const ACTIONS: &[Row] = &[
    (FILES, "files = ^{ index = [\"a\"] }", "a table of files has no `root`", "`root = \"/var/www/site\"`"),
    (FILES, "files = { root = ^\"www\" }", "`root` \"www\" is a relative path", "\"/var/www/site\""),
    (FILES, "files = { root = \"@/www\", index = ^\"index.html\" }", "`index` is the string \"index.html\"", "an array of file names"),
    (FILES, "files = { root = \"@/www\", index = [^\"../a\"] }", "`index` \"../a\" is no name but a path", "the name of a file"),
    (FILES, "files = { root = \"@/www\", index = [^\"..\"] }", "`index` \"..\" is no file", "the name of a file"),
    (FILES, "files = { root = \"@/www\", cache_control = ^\"a\\nb\" }", "`cache_control` \"a\\nb\" has the character `\\n`", "visible ASCII"),
    (FILES, "files = { root = \"@/www\", precompressed = ^\"br\" }", "`precompressed` is the string \"br\"", "true or false"),
    (FILES, "redirect = ^{ status = 301 }", "a redirect has no `location`", "`location = \"https://{host}{path}{query}\"`"),
    (FILES, "redirect = { location = ^\"\" }", "`location` \"\" is empty", "a URL or a path"),
    (FILES, "redirect = { location = ^\"www.example.org\" }", "\"www.example.org\" is neither a URL nor a path", "\"/new/\""),
    (FILES, "redirect = { location = ^\"//evil.example/\" }", "begins with `//`, which browsers take for a host", "a single `/`"),
    (FILES, "redirect = { location = ^\"/{path}\" }", "\"/{path}\" begins with `//`", "a single `/`"),
    (FILES, "redirect = { location = ^\"https://{host}/{uri}\" }", "has the unknown `{uri}`", "`{host}`, `{path}` or `{query}`"),
    (FILES, "redirect = { location = ^\"https://{host\" }", "has a `{` that is not closed", "a URL or a path"),
    (FILES, "redirect = { location = ^\"https:///a\" }", "\"https:///a\" has no host", "a URL or a path"),
    (FILES, "redirect = { location = ^\"/a b\" }", "`location` \"/a b\" has the character ` `", "percent-encoded"),
    (FILES, "redirect = { location = \"/a\", status = ^200 }", "`status` 200 is no status of a redirect", "301, 302, 303, 307 or 308"),
    (FILES, "respond = { status = ^101 }", "`status` 101 is out of range", "from 200 to 599"),
    (FILES, "respond = { status = 204, body = ^\"x\" }", "a response with status 204 has no body", "no body, or another `status`"),
    (FILES, "respond = { content_type = ^\"html\" }", "`content_type` \"html\" is no media type", "\"text/html; charset=utf-8\""),
    (FILES, "respond = { body = \"x\", body_file = ^\"@/page.html\" }", "a response has both `body` and `body_file`", "one of them"),
    (FILES, "respond = { body_file = ^\"@/none.html\" }", "`body_file` \"@/none.html\" can't be read: No such file", "a file that can be read"),
    (FILES, "respond = { body_file = ^\"@/large.html\" }", "`body_file` \"@/large.html\" is too large", "at most 1048576 bytes"),
    (FILES, "respond = { body_file = ^\"@/pipe\" }", "`body_file` \"@/pipe\" is not a regular file", "a file that can be read"),
    (APP, "pool = \"app\"\nrewrite = { strip_prefix = ^\"app\" }", "`strip_prefix` \"app\" does not begin with `/`", "such as \"/app\""),
    (APP, "pool = \"app\"\nrewrite = { strip_prefix = ^\"/\" }", "`strip_prefix` \"/\" changes nothing", "such as \"/app\""),
    (APP, "pool = \"app\"\nrewrite = { add_prefix = ^\"/app/\" }", "`add_prefix` \"/app/\" ends with `/`", "such as \"/app\""),
    (APP, "pool = \"app\"\nrewrite = { add_prefix = ^\"/a/../b\" }", "`add_prefix` \"/a/../b\" is not normalised", "without `//`, `.` and `..`"),
    (APP, "pool = \"app\"\nrewrite = { add_prefix = ^\"/a?b\" }", "`add_prefix` \"/a?b\" has the character `?`", "which stand for themselves"),
    (APP, "pool = \"app\"\nrewrite = { host = ^\"a b\" }", "`host` \"a b\" has the character ` `, which no host has", "a host name"),
    (APP, "pool = \"app\"\nrewrite = { request_headers = [^{ value = \"x\" }] }", "a change in `request_headers` has no header", "one of `set`, `add` and `remove`"),
    (APP, "pool = \"app\"\nrewrite = { request_headers = [{ set = \"A\", add = ^\"B\", value = \"x\" }] }", "has both `set` and `add`", "one of `set`, `add` and `remove`"),
    (APP, "pool = \"app\"\nrewrite = { request_headers = [^{ set = \"A\" }] }", "`set` has no `value`", "`value = \"text\"`"),
    (APP, "pool = \"app\"\nrewrite = { response_headers = [{ remove = \"Server\", value = ^\"x\" }] }", "`value` beside `remove` has no effect", "no `value`"),
    (APP, "pool = \"app\"\nrewrite = { request_headers = [{ remove = ^\"Transfer-Encoding\" }] }", "`remove` \"Transfer-Encoding\" belongs to a single connection", "a header of the message"),
    (APP, "pool = \"app\"\nrewrite = { response_headers = [{ set = ^\"Content-Length\", value = \"0\" }] }", "`set` \"Content-Length\" frames the message", "another header"),
    (APP, "pool = \"app\"\nrewrite = { request_headers = [{ set = ^\"Host\", value = \"a\" }] }", "`set` \"Host\" has a key of its own", "`host` in the rewrite itself"),
    (APP, "pool = \"app\"\nrewrite = { request_headers = [{ set = ^\"X:Y\", value = \"a\" }] }", "`set` \"X:Y\" is no name of a header", "such as \"X-Frontend\""),
    (APP, "pool = \"app\"\nrewrite = { request_headers = [{ add = \"A\", value = ^\"a\\r\\nB: c\" }] }", "`value` \"a\\r\\nB: c\" has the character `\\r`", "visible ASCII"),
    (APP, "pool = \"app\"\nrewrite = { request_headers = [{ add = \"A\", value = ^\" a\" }] }", "`value` \" a\" begins or ends with a space", "only between them"),
];
/// The second frontend.
const PLAIN: &str =
    "[[frontend]]\nname = \"plain\"\nmode = \"http\"\naddress = \"127.0.0.1:80\"\npool = \"app\"";
/// The beginning of [`BASE`].
const HEAD: &str = "[http]\nthreads = 2\n\n[[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = \"0.0.0.0:443\"";
pub(super) const FILES: &str = "files = { root = \"@/www\" }";
/// The pool of the mount.
const APP: &str = "pool = \"app\"";
/// The stickiness of the pool, and another.
const ROUTE: &str = "type = \"route\"";

#[rustfmt::skip]
const STICKY: &[Row] = &[
    ("[pool.sticky]\ntype = \"route\"", "^[pool.sticky]", "a pool's `sticky` has no `type`", "`type = \"route\"`"),
    (ROUTE, "type = ^\"cookies\"", "`type` \"cookies\" is not known", "\"route\" or \"cookie\" or \"learn\" or \"source\""),
    (ROUTE, "type = \"route\"\ncookie = ^\"\"", "`cookie` \"\" is empty", "such as \"JSESSIONID\""),
    (ROUTE, "type = \"route\"\ncookie = ^\"a=b\"", "`cookie` \"a=b\" has the character `=`", "such as \"JSESSIONID\""),
    (ROUTE, "type = \"route\"\nparameter = ^\";jsessionid=\"", "`parameter` \";jsessionid=\" has more than the name in it", "\"jsessionid\", or false"),
    (ROUTE, "type = \"route\"\nparameter = ^\"\"", "`parameter` \"\" is empty", "\"jsessionid\", or false"),
    (ROUTE, "type = \"route\"\nparameter = ^\"a/b\"", "`parameter` \"a/b\" has the character `/`", "\"jsessionid\", or false"),
    (ROUTE, "type = \"route\"\nforce = ^\"yes\"", "`force` is the string \"yes\"", "true or false"),
    (ROUTE, "type = \"route\"\nkey_file = ^\"@/cookie.key\"", "`key_file` does not belong to a `sticky` of type \"route\"", "`type = \"cookie\"`, or no `key_file`"),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\ngroup = ^\"user\"", "`group` does not belong to a `sticky` of type \"cookie\"", "`type = \"route\"` or `\"learn\"` or `\"source\"`"),
    (ROUTE, "type = \"route\"\nidle = ^\"5m\"", "`idle` does not belong to a `sticky` of type \"route\"", "`type = \"learn\"`, or no `idle`"),
    (ROUTE, "type = \"source\"\nforce = ^true", "`force` does not belong to a `sticky` of type \"source\"", "`type = \"route\"` or `\"cookie\"` or `\"learn\"`"),
    (ROUTE, "type = \"source\"\nipv4_prefix = ^33", "`ipv4_prefix` 33 is out of range", "from 1 to 32"),
    (ROUTE, "type = \"source\"\nipv6_prefix = ^0", "`ipv6_prefix` 0 is out of range", "from 1 to 128"),
    ("[pool.sticky]\ntype = \"route\"", "^[pool.sticky]\ntype = \"learn\"", "a learned cookie has no name", "`cookie = \"PHPSESSID\"`"),
    (ROUTE, "type = \"learn\"\ncookie = \"PHPSESSID\"\nidle = ^\"31d\"", "`idle` \"31d\" is too long", "from 1s to 30d"),
    (ROUTE, "type = \"learn\"\ncookie = \"PHPSESSID\"\nparameter = ^\"sid\"", "`parameter` does not belong to a `sticky` of type \"learn\"", "`type = \"route\"`, or no `parameter`"),
    ("[pool.sticky]\ntype = \"route\"", "^[pool.sticky]\ntype = \"cookie\"", "an inserted cookie has no `key_file`", "`key_file = \"/etc/balancer/cookie.key\"`"),
    (ROUTE, "type = \"cookie\"\nkey_file = ^\"cookie.key\"", "`key_file` \"cookie.key\" is a relative path", "\"/etc/balancer/cookie.key\""),
    (ROUTE, "type = \"cookie\"\nkey_file = ^\"@/short.key\"", "`key_file` \"@/short.key\" has only 31 bytes", "at least 32 random bytes"),
    (ROUTE, "type = \"cookie\"\nkey_file = ^\"@/open.key\"", "`key_file` \"@/open.key\" is a secret that others can get at", "0600 or 0640"),
    (ROUTE, "type = \"cookie\"\nkey_file = ^\"@/none.key\"", "`key_file` \"@/none.key\" can't be read: No such file", "a file that can be read"),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\nvalue = ^\"plain\"", "`value` \"plain\" is not known", "\"signed\" or \"opaque\""),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\npath = ^\"app\"", "`path` \"app\" does not begin with `/`", "a path such as \"/\""),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\npath = ^\"/a; Secure\"", "`path` \"/a; Secure\" has the character `;`", "a path such as \"/\""),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\ndomain = ^\".example.org\"", "`domain` \".example.org\" begins with a dot", "the domain alone"),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\ndomain = ^\"example org\"", "`domain` \"example org\" has the character ` `", "a domain such as"),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\nmax_age = ^\"401d\"", "`max_age` \"401d\" is too long", "from 1s to 400d"),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\nmax_age = ^\"1500ms\"", "`max_age` \"1500ms\" is not in whole seconds", "a duration such as \"1h\""),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\nsame_site = ^\"none\"", "`same_site = \"none\"` without `secure`", "`secure = true` as well"),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\nsame_site = ^\"Laxx\"", "`same_site` \"Laxx\" is not known", "\"lax\" or \"strict\" or \"none\""),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\npartitioned = ^true", "`partitioned` without `secure`", "`secure = true` as well"),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\ncookie = ^\"__Secure-lb\"", "a cookie with such a name has to be secure", "`secure = true` as well"),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\nsecure = true\ncookie = ^\"__Host-lb\"\npath = \"/app\"", "a `__Host-` cookie with a domain or another path", "no `domain`, and the path \"/\""),
];

#[rustfmt::skip]
const POOLS: &[Row] = &[
    ("\"least-connections\"", "^\"leastconn\"", "`balance` \"leastconn\" is not known", "\"round-robin\" or \"least-connections\" or \"power-of-two\" or \"source\""),
    ("length = 100", "length = ^-1", "`length` -1 is out of range", "from 0 to 1000000"),
    ("length = 100", "timeout = ^\"2h\"", "`timeout` \"2h\" is too long", "from 1ms to 1h"),
    ("[pool.queue]\nlength = 100", "[pool.retries]\nattempts = ^11", "`attempts` 11 is out of range", "from 0 to 10"),
    ("[pool.queue]\nlength = 100", "[pool.retries]\nbudget_percent = ^101", "`budget_percent` 101 is out of range", "from 0 to 100"),
    ("[pool.queue]\nlength = 100", "[pool.retries]\nnon_idempotent = ^\"POST\"", "`non_idempotent` is the string \"POST\"", "true or false"),
    ("[pool.queue]\nlength = 100", "[pool.retries]\non_status = [502, ^500]", "`on_status` 500 is no status to retry on", "502, 503 or 504"),
    ("[pool.queue]\nlength = 100", "[pool.retries]\non_status = [503, ^503]", "503 is twice in `on_status`", "each status once"),
    ("[pool.queue]\nlength = 100", "[pool.retries]\non_status = ^503", "`on_status` is the integer 503", "an array of 502, 503 and 504"),
    ("[pool.queue]\nlength = 100", "[pool.observe]\nenabled = ^\"no\"", "`enabled` is the string \"no\"", "true or false"),
    ("[pool.queue]\nlength = 100", "[pool.observe]\nfailures = ^0", "`failures` 0 is out of range", "from 1 to 1000"),
    ("[pool.queue]\nlength = 100", "[pool.observe]\nejection = ^\"1ms\"", "`ejection` \"1ms\" is too short", "from 10ms to 1d"),
    ("[pool.queue]\nlength = 100", "[pool.observe]\nejection = \"10s\"\nmax_ejection = ^\"5s\"", "`max_ejection` 5s is shorter than `ejection` 10s", "at least \"10s\""),
    ("[pool.queue]\nlength = 100", "[pool.timeouts]\nconnect = ^\"0s\"", "`connect` \"0s\" is zero", "from 1ms to 1h"),
    ("[pool.queue]\nlength = 100", "[pool.timeouts]\nresponse = ^false", "`response` is the boolean false", "a string such as \"1m\""),
    ("[pool.queue]\nlength = 100", "[pool.timeouts]\nrequest = ^true", "`request` is the boolean true", "a string such as \"5m\", or false"),
    ("[pool.queue]\nlength = 100", "[pool.timeouts]\ntunnel = ^\"1ms\"", "`tunnel` \"1ms\" is too short", "from 1s to 30d"),
    ("[pool.queue]\nlength = 100", "[pool.tls]\nverify = ^\"none\"", "`verify` is the string \"none\"", "true or false"),
    ("[pool.queue]\nlength = 100", "[pool.tls]\nverify = false\nauthorities = ^\"@/site.pem\"", "`authorities` has no effect beside `verify = false`", "`verify = true`"),
    ("[pool.queue]\nlength = 100", "[pool.tls]\nauthorities = ^\"@/none.pem\"", "`authorities` \"@/none.pem\" can't be read", "a file that can be read"),
    ("[pool.queue]\nlength = 100", "[pool.tls]\nserver_name = ^\"app_1/\"", "`server_name` \"app_1/\" has the character `/`", "\"app.example.org\", or an address"),
    ("[pool.queue]\nlength = 100", "[pool.tls]\nserver_name = ^\"-app-.example\"", "`server_name` \"-app-.example\" can't be in a certificate", "\"app.example.org\", or an address"),
    ("[pool.queue]\nlength = 100", "[pool.tls]\ncertificate = ^\"@/site.pem\"", "`certificate` without `key`", "both `certificate` and `key`, or neither"),
    ("[pool.queue]\nlength = 100", "[pool.tls]\nkey = ^\"@/site.key\"", "`key` without `certificate`", "both `certificate` and `key`, or neither"),
    ("[pool.queue]\nlength = 100", "^[pool.maintenance]\nstatus = 503", "a maintenance page has neither `body` nor `body_file`", "`body = \"Back soon.\"`"),
    ("[pool.queue]\nlength = 100", "[pool.maintenance]\nbody_file = ^\"page.html\"", "`body_file` \"page.html\" is a relative path", "\"/etc/balancer/page.html\""),
    ("[pool.queue]\nlength = 100", "[pool.maintenance]\nbody = \"x\"\nstatus = ^199", "`status` 199 is out of range", "from 200 to 599"),
    ("balance", "panic_threshold = ^101\nbalance", "`panic_threshold` 101 is out of range", "from 0 to 100"),
    ("balance", "slow_start = ^30\nbalance", "`slow_start` is the integer 30", "a string such as \"30s\", or false"),
    ("balance", "slow_start = ^\"2h\"\nbalance", "`slow_start` \"2h\" is too long", "from 1ms to 1h, or false"),
    ("balance", "protocol = ^\"h2c\"\nbalance", "`protocol` \"h2c\" is not known", "\"http1\" or \"http2\" or \"ajp\""),
    ("balance", "protocol = \"ajp\"\nsend_proxy = ^\"v2\"\nbalance", "`send_proxy` beside `protocol = \"ajp\"`: AJP13 has none", "no `send_proxy`, or a protocol of HTTP"),
    ("balance", "protocol = \"ajp\"\nsecret = ^5\nbalance", "`secret` is not a string", "1 to 256 printable characters"),
    ("balance", "protocol = \"ajp\"\nsecret = ^\"\"\nbalance", "`secret` is empty", "1 to 256 printable characters"),
    ("balance", "protocol = \"ajp\"\nsecret = ^\"a\\tb\"\nbalance", "`secret` has a character that is not printable ASCII", "1 to 256 printable characters"),
    ("balance", "secret = ^\"x\"\nbalance", "`secret` of a pool belongs to AJP13, which is not spoken here", "`protocol = \"ajp\"` in the pool, or no `secret`"),
    ("balance", "protocol = \"http2\"\npacket_size = ^8192\nbalance", "`packet_size` of a pool belongs to AJP13", "`protocol = \"ajp\"` in the pool, or no `packet_size`"),
    ("balance", "protocol = \"ajp\"\npacket_size = ^8191\nbalance", "`packet_size` 8191 is out of range", "from 8192 to 65536"),
    ("balance", "protocol = \"ajp\"\npacket_size = ^65_537\nbalance", "`packet_size` 65537 is out of range", "from 8192 to 65536"),
    ("[pool.queue]\nlength = 100", "^[pool.ping]\nconnect = true", "`ping` of a pool belongs to AJP13", "`protocol = \"ajp\"` in the pool, or no `ping`"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n[pool.ping]\nconnect = ^\"1s\"\n", "`connect` is the string \"1s\"", "true or false"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n[pool.ping]\nreuse = ^1\n", "`reuse` is the integer 1", "true, false, or a duration in a string such as \"1s\""),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n[pool.ping]\nreuse = ^\"0s\"\n", "`reuse` \"0s\" is zero", "from 1ms to 1d"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n[pool.ping]\ntimeout = ^\"2m\"\n", "`timeout` \"2m\" is too long", "from 1ms to 1m"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n^[pool.tls]\n", "`tls` beside `protocol = \"ajp\"`: AJP13 has none", "no `tls`, or a protocol of HTTP"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n[pool.check]\ntype = \"ajp\"\ntls = ^true\n", "`tls` in a check of type ajp: AJP13 has none", "another `type`, or no `tls`"),
    ("[pool.queue]\nlength = 100", "[pool.check]\ntype = \"ajp\"\nport = 8009\npath = ^\"/\"", "`path` belongs to an http check, and this one's type is ajp", "`type = \"http\"`, or no `path`"),
    ("name = \"s2\"", "name = \"s2\"\nhttp_port = ^8080", "`http_port` of backend \"s2\" belongs to AJP13", "`protocol = \"ajp\"` in the pool, or no `http_port`"),
    ("name = \"s2\"", "name = \"s2\"\nsecret = ^\"x\"", "`secret` of backend \"s2\" belongs to AJP13", "`protocol = \"ajp\"` in the pool, or no `secret`"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n[[pool.backend]]\nname = \"a\"\naddress = \"127.0.0.1:8009\"\nhttp_port = ^0\n", "`http_port` 0 is out of range", "from 1 to 65535"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n[[pool.backend]]\nname = \"a\"\naddress = \"127.0.0.1:8009\"\nhttp_port = ^8009\n", "`http_port` 8009 of backend \"a\" is where it speaks AJP13", "the port of its HTTP connector"),
    ("balance", "send_proxy = ^2\nbalance", "`send_proxy` is the integer 2", "\"v1\" or \"v2\""),
    ("balance", "keep_alive_connections = ^70_000\nbalance", "`keep_alive_connections` 70000 is out of range", "from 0 to 65536"),
    ("name = \"s2\"", "name = \"s2\"\nroute = ^\"a;b\"", "`route` \"a;b\" has the character `;`", "letters, digits and -_~."),
    ("name = \"s2\"", "name = \"s2\"\nroute = ^\"\"", "`route` \"\" is empty", "1 to 64"),
    ("name = \"s2\"", "name = \"s2\"\nroute = ^\"s1\"", "route \"s1\" of backend \"s2\" is also that of backend \"s1\"", "by default it is the name"),
    ("name = \"s2\"", "name = \"s2\"\ndomain = ^\"east.1\"", "`domain` \"east.1\" has the character `.`", "letters, digits and -_~"),
    ("name = \"s2\"", "name = \"s2\"\nredirect = ^\"s2\"", "`redirect` of backend \"s2\" leads to itself", "the route of another backend"),
    ("name = \"s2\"", "name = \"s2\"\nredirect = ^\"standby\"", "no backend of pool \"app\" has the route \"standby\"", "the route of another backend"),
    ("name = \"s1\"", "name = \"tomcat1\"\nredirect = ^\"tomcat-1\"", "no backend of pool \"app\" has the route \"tomcat-1\"", "perhaps \"tomcat1\""),
    ("name = \"s2\"", "name = \"s2\"\npriority = ^256", "`priority` 256 is out of range", "from 0 to 255"),
    ("name = \"s2\"", "name = \"s2\"\nmax_connections = ^0", "`max_connections` 0 is out of range", "from 1 to 1000000, or false"),
    ("\"[::1]:8082\"", "^\"127.0.0.1:8081\"", "127.0.0.1:8081 is twice in pool \"app\"", "each server once"),
    ("\"[::1]:8082\"", "^\"0.0.0.0:8082\"", "`address` \"0.0.0.0:8082\" is the unspecified address", "the server's own address"),
];

/// What is only odd.
#[rustfmt::skip]
const WARNINGS: &[Row] = &[
    ("hsts", "trusted_proxies = [^\"0.0.0.0/0\"]\nhsts", "`trusted_proxies` has everyone in it", "the networks of the proxies in front"),
    ("address = \"127.0.0.1:80\"", "address = \"127.0.0.1:80\"\nhttp1 = ^false", "HTTP/2 only, and no TLS: clients have to know beforehand (prior knowledge)", "a `[frontend.tls]`"),
    ("pattern = \"/app/images/*\"\npool = \"app\"", "pattern = \"/app/images/*\"\npool = ^\"spare\"\n[[pool]]\nname = \"spare\"\n[[pool.backend]]\nname = \"s\"\naddress = \"127.0.0.1:1\"\n[[frontend]]\nname = \"x\"\nmode = \"http\"\naddress = \"0.0.0.0:444\"\npool = \"spare\"\n[[frontend.site]]\nhosts = [\"a\"]\npool = \"app\"\n", "nothing of this site goes to pool \"spare\"", "a pool that a mount of this site has"),
    (FILES, "redirect = { location = \"/a\" }\nrewrite = { strip_prefix = ^\"/b\" }", "`strip_prefix` has no effect on `redirect`", "a `pool`, or no `strip_prefix`"),
    (FILES, "files = { root = \"@/www\" }\nrewrite = { request_headers = [^{ remove = \"a\" }] }", "`request_headers` has no effect on `files`", "a `pool`, or no `request_headers`"),
    (FILES, "respond = { body = \"x\" }\nrewrite = { host = ^\"a\" }", "`host` has no effect on `respond`", "a `pool`, or no `host`"),
    ("file =", "format = \"json\"\ndetails = ^false\nfile =", "`details` has no effect on `format = \"json\"`", "no `details`"),
    ("[pool.queue]\nlength = 100", "[pool.retries]\nnon_idempotent = ^true", "`non_idempotent` repeats requests that a backend may have acted on", "unless the application can tell"),
    ("[pool.queue]\nlength = 100", "[pool.retries]\nattempts = ^0\non_status = [502]", "`on_status` has no effect without `attempts`", "at least 1"),
    ("[pool.queue]\nlength = 100", "[pool.observe]\nenabled = false\nfailures = ^5", "`failures` has no effect beside `enabled = false`", "`enabled = true`, or no `failures`"),
    ("[pool.queue]\nlength = 100", "^[pool.check]\ntype = \"http\"\ntls = false\n[pool.tls]", "the check of pool \"app\" speaks plain HTTP, but its backends speak TLS", "no `tls = false`, or the `port` of a plain listener"),
    ("[pool.queue]\nlength = 100", "[pool.check]\ntype = \"none\"\ntls = ^true\n[pool.tls]", "`tls` has no effect without a check", "a `type` of check, or no `tls`"),
    ("[http]\nthreads = 2", "[xdp]\ninterfaces = [\"eth0\"]\n[[frontend]]\nname = \"v\"\naddress = \"192.0.2.1:80\"\npool = \"v\"\n[[pool]]\nname = \"v\"\n^[pool.tls]\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.1:443\"", "no HTTP frontend uses pool \"v\": `tls` has no effect", "`mode = \"http\"`, or no `tls`"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n^[pool.check]\ntype = \"http\"\n", "the check of pool \"app\" speaks HTTP, but its backends speak AJP13", "`type = \"ajp\"`, or the `port` of an HTTP connector"),
    ("[pool.queue]\nlength = 100", "^[pool.check]\ntype = \"ajp\"", "the check of pool \"app\" speaks AJP13, but its backends speak HTTP", "another `type`, or the `port` of an AJP connector"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n[[pool.backend]]\nname = \"a\"\naddress = ^\"10.0.0.1:8009\"\n", "backend \"a\" of pool \"app\" speaks AJP13 without a `secret`", "a `secret` in the pool, the same as in the backends' AJP connectors"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n[pool.ping]\nconnect = false\nreuse = false\ntimeout = ^\"1s\"\n", "`timeout` has no effect without `connect` and `reuse`", "one of them, or no `timeout`"),
    ("[http]\nthreads = 2", "[xdp]\ninterfaces = [\"eth0\"]\n[[frontend]]\nname = \"v\"\naddress = \"192.0.2.1:80\"\npool = \"v\"\n[[pool]]\nname = \"v\"\nprotocol = ^\"ajp\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.1:8009\"", "no HTTP frontend uses pool \"v\": `protocol` has no effect", "`mode = \"http\"`, or no `protocol`"),
    ("[pool.queue]\nlength = 100", "^[pool.passive]\nrefused = true", "only HTTP frontends use pool \"app\": `passive`, which is about steering, has no effect", "a frontend in xdp mode"),
    ("balance", "forward = ^\"nat\"\nbalance", "only HTTP frontends use pool \"app\": `forward`", "or no `forward`"),
    ("balance", "snat = ^[\"10.0.0.1\"]\nbalance", "only HTTP frontends use pool \"app\": `snat`", "or no `snat`"),
    ("balance", "unavailable = ^\"drop\"\nbalance", "only HTTP frontends use pool \"app\": `unavailable`", "or no `unavailable`"),
    ("[http]\nthreads = 2", "[xdp]\ninterfaces = [\"eth0\"]\n[[frontend]]\nname = \"v\"\naddress = \"192.0.2.1:80\"\npool = \"v\"\n[[pool]]\nname = \"v\"\n^[pool.sticky]\ntype = \"route\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.1:443\"", "no HTTP frontend uses pool \"v\": routes in session ids have no effect", "`mode = \"http\"`, or no `sticky`"),
    ("[http]\nthreads = 2", "[xdp]\ninterfaces = [\"eth0\"]\n[[frontend]]\nname = \"v\"\naddress = \"192.0.2.1:80\"\npool = \"v\"\n[[pool]]\nname = \"v\"\nslow_start = ^\"1s\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.1:443\"", "no HTTP frontend uses pool \"v\": `slow_start` has no effect", "`mode = \"http\"`, or no `slow_start`"),
    ("[http]\nthreads = 2", "[xdp]\ninterfaces = [\"eth0\"]\n[[frontend]]\nname = \"v\"\naddress = \"192.0.2.1:80\"\npool = \"v\"\n[[pool]]\nname = \"v\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.1:443\"\npriority = ^1", "no HTTP frontend uses pool \"v\": `priority` of backend \"s\" has no effect", "`mode = \"http\"`, or no `priority`"),
];

/// What is neither wrong nor odd.
#[rustfmt::skip]
const GOOD: &[(&str, &str)] = &[
    // Of one port, but not of one address.
    ("\"127.0.0.1:80\"", "\"[::1]:443\""),
    // The kernel steers UDP alone, to another address's agent.
    ("[http]\nthreads = 2", "[xdp]\ninterfaces = [\"eth0\"]\n[[frontend]]\nname = \"v\"\nprotocol = \"udp\"\naddress = \"192.0.2.1:443\"\npool = \"v\"\n[[pool]]\nname = \"v\"\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.1:443\""),
    // A pool of agents, the one here included, is steered to.
    ("[http]\nthreads = 2\n\n[[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = \"0.0.0.0:443\"", "[xdp]\ninterfaces = [\"eth0\"]\n[[frontend]]\nname = \"v\"\naddress = \"192.0.2.1:443\"\npool = \"v\"\n[[pool]]\nname = \"v\"\n[[pool.backend]]\nname = \"here\"\naddress = \"10.0.0.1:443\"\n[[pool.backend]]\nname = \"there\"\naddress = \"10.0.0.2:443\"\n[[frontend]]\nname = \"web\"\nmode = \"http\"\naddress = \"10.0.0.1:443\""),
    // TLS behind a proxy that speaks the PROXY protocol.
    ("hsts", "proxy_protocol_from = [\"10.0.0.0/8\"]\ntrusted_proxies = [\"10.0.0.0/8\"]\nhsts"),
    // Checks go over TLS with requests; or to a port of their own, over TLS or not.
    ("[pool.queue]\nlength = 100", "[pool.check]\ntype = \"http\"\n[pool.tls]"),
    ("[pool.queue]\nlength = 100", "[pool.check]\ntype = \"http\"\nport = 81\n[pool.tls]"),
    ("[pool.queue]\nlength = 100", "[pool.check]\ntype = \"tcp\"\nport = 444\ntls = true\n[pool.tls]"),
    // AJP13, with secrets of the pool or the backends, or within one host.
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\nsecret = \"s\"\npacket_size = 65_536\n[pool.ping]\nreuse = \"1s\"\n[[pool.backend]]\nname = \"a\"\naddress = \"10.0.0.1:8009\"\nhttp_port = 8080\n"),
    ("balance = \"least-connections\"\n", "protocol = \"ajp\"\n[pool.check]\ntype = \"http\"\nport = 8080\n[[pool.backend]]\nname = \"a\"\naddress = \"10.0.0.1:8009\"\nsecret = \"s\"\n"),
    // Steered connections are none of ours, but checks are.
    ("[http]\nthreads = 2", "[xdp]\ninterfaces = [\"eth0\"]\n[[frontend]]\nname = \"v\"\naddress = \"192.0.2.1:80\"\npool = \"v\"\n[[pool]]\nname = \"v\"\n[pool.check]\ntype = \"http\"\ntls = true\n[pool.tls]\nverify = false\n[[pool.backend]]\nname = \"s\"\naddress = \"10.0.0.1:443\""),
    // A site for some hosts, and the frontend's pool for the rest.
    ("hsts", "pool = \"app\"\nhsts"),
    (ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"\ncookie = \"__Host-lb\"\nsame_site = \"none\"\nsecure = true\npartitioned = true"),
    (ROUTE, "type = \"route\"\nparameter = false"),
    (FILES, "respond = { status = 200, body_file = \"@/page.html\" }"),
    // The balancer's own short names of what `*` means to people.
    ("[\"www.example.org\", \"*.example.com\"]", "[\"example.com\", \"*.example.com\", \"[2001:db8::1]\", \"192.0.2.1\"]"),
    ("name = \"s1\"", "name = \"s1\"\nroute = \"a.b\"\nredirect = \"s2\""),
];

/// A directory with what the rows name.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8], mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        file("site.pem", b"a certificate", 0o644);
        file("site.key", b"a key", 0o600);
        file("cookie.key", &[7; 32], 0o640);
        file("short.key", &[7; 31], 0o600);
        file("open.key", &[7; 32], 0o644);
        file("group.key", &[7; 32], 0o660);
        file("page.html", b"<p>Back soon.", 0o644);
        file("large.html", &vec![b'x'; (1 << 20) + 1], 0o644);
        fs::create_dir(folder.path().join("www")).unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        Self(folder)
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The text with this directory's path for every `@`.
    pub(super) fn fill(&self, text: &str) -> String {
        text.replace('@', self.path().to_str().unwrap())
    }
}

/// Line and column of the mark, and the text without it.
pub(super) fn marked(text: &str) -> (usize, usize, String) {
    let (before, after) = text.split_once('^').expect(text);
    assert!(!after.contains('^'), "{text}");
    let line = before.matches('\n').count() + 1;
    let last = before.rsplit('\n').next().unwrap();
    (line, last.chars().count() + 1, format!("{before}{after}"))
}

/// Puts a row into [`BASE`] and gives line and column of the mark with the text.
fn changed(folder: &Folder, from: &str, to: &str) -> (usize, usize, String) {
    assert!(BASE.contains(from), "{from}");
    marked(&folder.fill(&BASE.replacen(from, to, 1)))
}

#[test]
fn what_is_odd_is_said_at_its_place() {
    let folder = Folder::new();
    let mut failures = String::new();
    for (from, to, message, expected) in WARNINGS {
        let (line, column, text) = changed(&folder, from, to);
        let message = folder.fill(message);
        let said = match config::parse_with_warnings("b.toml", &text) {
            Ok((_, warnings)) => warnings,
            Err(error) => {
                writeln!(failures, "{to}: refused:\n{error}").unwrap();
                continue;
            }
        };
        let [problem] = said.problems() else {
            writeln!(failures, "{to}: not one warning:\n{said}").unwrap();
            continue;
        };
        let right = (problem.line, problem.column) == (line, column)
            && problem.message.contains(&message)
            && problem.expected.contains(expected);
        if !right {
            let wanted = format!("{line}:{column} {message}; {expected}");
            writeln!(failures, "{to}: wanted {wanted}\n  {said}").unwrap();
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn what_is_good_is_taken_without_a_word() {
    let folder = Folder::new();
    for (from, to) in GOOD {
        assert!(BASE.contains(from), "{from}");
        let text = folder.fill(&BASE.replacen(from, to, 1));
        match config::parse_with_warnings("b.toml", &text) {
            Ok((_, warnings)) => assert_eq!(warnings.to_string(), "", "{text}"),
            Err(error) => panic!("{error}\n{text}"),
        }
    }
}

#[test]
fn secrets_and_pages_are_read_with_the_file() {
    use balancer_agent::model::http::{Action, CookieValue, Sticky};
    let folder = Folder::new();
    let text = BASE
        .replacen(ROUTE, "type = \"cookie\"\nkey_file = \"@/cookie.key\"", 1)
        .replacen(FILES, "respond = { body_file = \"@/page.html\" }", 1);
    let config = config::parse("b.toml", &folder.fill(&text)).unwrap();
    let Some(Sticky::Cookie(cookie)) = &config.pool("app").unwrap().http.sticky else {
        panic!("{config:?}");
    };
    assert_eq!(cookie.value, CookieValue::Signed([7; 32].as_slice().into()));
    let shown = format!("{config:?}");
    assert!(
        shown.contains("Signed(..)") && !shown.contains("7, 7, 7"),
        "{shown}"
    );
    let fallback = config.http.frontends[0].sites[0].fallback.as_ref().unwrap();
    let Action::Respond { body, .. } = &fallback.action else {
        panic!("{fallback:?}");
    };
    assert_eq!(&body[..], b"<p>Back soon.");
}

#[test]
fn every_mistake_is_said_at_its_place() {
    let folder = Folder::new();
    let (_, warnings) = config::parse_with_warnings("base", &folder.fill(BASE)).unwrap();
    assert_eq!(warnings.to_string(), "");
    let groups = [
        STRUCTURE, FRONTENDS, TLS, LIMITS, SITES, ACTIONS, STICKY, POOLS,
    ];
    let mut judged = Judged::default();
    for (from, to, message, expected) in groups.concat() {
        assert!(!message.is_empty() && !expected.is_empty(), "{to}");
        let (line, column, text) = changed(&folder, from, to);
        let message = folder.fill(message);
        let Some(error) = judged.row(to, (line, column, &text), &message, expected) else {
            continue;
        };
        let report = error.report(false);
        if !report.contains(&format!("b.toml:{line}:{column}")) {
            writeln!(judged.failures, "{to}: the report has no place:\n{report}").unwrap();
        }
    }
    judged.assert_none_failed();
    assert!(judged.messages.len() >= 200, "{}", judged.messages.len());
}

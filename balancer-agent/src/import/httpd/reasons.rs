//! Directives that nothing is made of, and why.

/// Why a directive is not carried over.
pub fn reason(name: &str) -> &'static str {
    match name {
        "loadmodule" | "addmodule" | "clearmodulelist" => "there are no modules",
        "jkshmfile" | "jkshmsize" | "jkwatchdoginterval" => {
            "there is no shared memory: the state is the agent's"
        }
        "jklogfile" | "jkloglevel" | "jklogstampformat" | "jkrequestlogformat" => {
            "the log of requests is `[frontend.log]`, with backend, route and times; the agent's own goes to standard error"
        }
        "jkoptions" | "jkenvvar" | "jkextractssl" | "jkhttpsindicator" | "jkcertsindicator"
        | "jkstripsession" | "jkautoalias" | "jkworkerindicator" => {
            "what backends are told is the same for all: see docs/http.md"
        }
        "errorlog" | "loglevel" | "errorlogformat" => {
            "the agent's own log goes to standard error, which systemd keeps"
        }
        "customlog" | "transferlog" | "logformat" | "globallog" => {
            "the access log is a file of each frontend: `[frontend.log]`"
        }
        "user" | "group" | "pidfile" | "chrootdir" | "mutex" | "defaultruntimedir" => {
            "the service manager's: `User=` and the like"
        }
        "maxrequestworkers"
        | "maxclients"
        | "serverlimit"
        | "startservers"
        | "minsparethreads"
        | "maxsparethreads"
        | "threadsperchild"
        | "maxconnectionsperchild"
        | "maxrequestsperchild"
        | "minspareservers"
        | "maxspareservers"
        | "threadlimit"
        | "listenbacklog" => {
            "connections need no workers: limits are `[http] max_connections` and `[frontend.limits]`"
        }
        "keepalive" | "maxkeepaliverequests" => {
            "connections are kept: `[frontend.timeouts] keep_alive`, `[frontend.limits] requests_per_connection`"
        }
        "sslciphersuite"
        | "sslhonorcipherorder"
        | "sslopensslconfcmd"
        | "sslcompression"
        | "sslsessiontickets"
        | "sslsessioncache"
        | "sslsessioncachetimeout"
        | "sslusestapling"
        | "sslstaplingcache"
        | "sslrandomseed"
        | "sslpassphrasedialog"
        | "sslcryptodevice" => {
            "TLS 1.2 and 1.3 with strong suites only, which are not chosen one by one"
        }
        "sslcertificatechainfile" => "put the chain behind the certificate, in the same file",
        "sslcacertificatepath" | "sslverifydepth" | "sslcarevocationfile" => {
            "authorities of clients are one PEM file: `[frontend.tls] client_authorities`"
        }
        "proxypass" | "proxypassmatch" | "proxypassreverse" | "proxypreservehost"
        | "balancermember" | "proxyrequests" | "proxyset" => {
            "mod_proxy is not read: write the pool and its mounts"
        }
        "errordocument" => {
            "of error pages there is one, while no backend is usable: `[pool.maintenance]`"
        }
        "header" | "requestheader" => "headers are changed by the `rewrite` of a mount",
        "servertokens" | "serversignature" | "usecanonicalname" | "traceenable" | "serveradmin"
        | "hostnamelookups" | "extendedstatus" | "namevirtualhost" | "enablesendfile"
        | "enablemmap" | "protocols" | "acceptfilter" | "fileetag" => "not needed here",
        "typesconfig" | "addtype" | "addencoding" | "addlanguage" | "addcharset"
        | "adddefaultcharset" | "mimemagicfile" | "addicon" | "defaulttype" | "forcetype" => {
            "types of files are known by their names"
        }
        "options" | "allowoverride" | "indexoptions" | "addhandler" | "sethandler"
        | "addoutputfilter" | "setoutputfilter" | "indexignore" | "readmename" | "headername"
        | "defaulticon" | "addiconbyencoding" | "addiconbytype" | "adddescription" => {
            "files are served as they are: nothing is listed or run, `.htaccess` does not exist; links inside the root work"
        }
        "setenv" | "setenvif" | "setenvifnocase" | "browsermatch" | "passenv" | "unsetenv" => {
            "there are no variables of requests (of these, `no-jk` is an exclusion: `[[frontend.site.exclude]]`)"
        }
        "expiresactive" | "expiresdefault" | "expiresbytype" => {
            "`cache_control` of `files` says how long files may be kept"
        }
        "limitrequestfields" | "limitrequestfieldsize" | "limitrequestline" => {
            "`[frontend.limits]` `headers`, `head_bytes`, `target_bytes`"
        }
        "aliasmatch" | "scriptalias" | "scriptaliasmatch" => {
            "programs are not run, and aliases have no regular expressions"
        }
        "require" | "order" | "deny" | "allow" => {
            "ACCESS IS NOT RESTRICTED HERE: write a mount with `respond = { status = 403 }`"
        }
        "remoteipheader"
        | "remoteipinternalproxy"
        | "remoteiptrustedproxy"
        | "remoteipproxyprotocol" => {
            "`trusted_proxies` and `proxy_protocol_from` say who the client is"
        }
        _ => "there is nothing like it",
    }
}

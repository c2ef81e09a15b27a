//! `balancer import`: what becomes of other balancers' configurations. Every result is loaded
//! by the configuration's own reader, and looked at as a model.

#[path = "import/article.rs"]
mod article;
#[path = "import/command.rs"]
mod command;
#[path = "import/haproxy.rs"]
mod haproxy;
#[path = "import/httpd.rs"]
mod httpd;
#[path = "import/nginx.rs"]
mod nginx;
#[path = "import/random.rs"]
mod random;
#[path = "import/samples.rs"]
mod samples;
#[path = "import/support.rs"]
mod support;

//! One thread's part: accepting and limits.
use super::{Handler, Listeners};
use std::rc::Rc;
use std::sync::Arc;

pub(super) async fn serve<H, F>(listeners: &Listeners, thread: usize, handler: F)
where
    H: Handler,
    F: Fn(&Arc<str>) -> Rc<H>,
{
    let _ = (listeners.watch(), listeners.overall(), thread, handler);
}

//! The page: static files, compiled in.

use std::sync::Arc;

use axum::{Router, http::header, routing::get};

use crate::api::App;

/// Every file: its path, its type, its content.
const FILES: [(&str, &str, &str); 7] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/app.css", "text/css; charset=utf-8", include_str!("page/app.css")),
    ("/app.js", "text/javascript; charset=utf-8", include_str!("page/app.js")),
    ("/api.js", "text/javascript; charset=utf-8", include_str!("page/api.js")),
    ("/fleet.js", "text/javascript; charset=utf-8", include_str!("page/fleet.js")),
    ("/log.js", "text/javascript; charset=utf-8", include_str!("page/log.js")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// A route for every file.
pub(crate) fn router() -> Router<Arc<App>> {
    FILES.into_iter().fold(Router::new(), |router, (path, media_type, content)| {
        let headers = [(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-cache")];
        router.route(path, get(move || async move { (headers, content) }))
    })
}

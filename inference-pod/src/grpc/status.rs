//! From what went wrong to a gRPC status.

use axum::http::StatusCode;
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};

use crate::http::error::{ApiError, millis};

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = code_of(error.status());
        let mut metadata = MetadataMap::new();
        match error.retry_after() {
            Some(wait) => {
                let wait = MetadataValue::from(millis(wait));
                // The first is gRPC's own, which clients obey; the second is the one that HTTP has too.
                metadata.insert("grpc-retry-pushback-ms", wait.clone());
                metadata.insert("retry-after-ms", wait);
            }
            // The same code as for a full queue, but trying again would be of no use.
            None if code == Code::ResourceExhausted => {
                metadata.insert("grpc-retry-pushback-ms", MetadataValue::from(-1));
            }
            None => {}
        }
        if error.is_compressed() {
            metadata.insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
        }
        Self::with_metadata(code, fit(&error.message()), metadata)
    }
}

/// Most bytes of a message on its way, where all but plain characters take three for each of theirs: many clients take no more than
/// 8 KiB of headers and trailers together, and would say that instead.
const LONGEST_SENT_BYTES: usize = 4 << 10;

/// As much of a message as is sent.
fn fit(message: &str) -> &str {
    let sent = |character: char| match character {
        '%' => 3,
        ' '..='~' => 1,
        other => 3 * other.len_utf8(),
    };
    let mut left = LONGEST_SENT_BYTES;
    let too_long = message.char_indices().find(|(_, character)| match left.checked_sub(sent(*character)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    });
    too_long.map_or(message, |(end, _)| &message[..end])
}

fn code_of(status: StatusCode) -> Code {
    match status {
        StatusCode::NOT_FOUND => Code::NotFound,
        // What gRPC itself says of a message that is too large, and of a queue that is full.
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Code::Unimplemented,
        status if status.is_client_error() => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_both_words_and_none_where_it_would_not_help() {
        let busy = Status::from(ApiError::not_ready("loading"));
        assert_eq!((busy.code(), busy.message()), (Code::Unavailable, "loading"));
        assert_eq!(busy.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
        assert_eq!(busy.metadata().get("retry-after-ms").unwrap(), "1000");
        let large = Status::from(ApiError::too_large("large"));
        assert_eq!(large.code(), Code::ResourceExhausted);
        assert_eq!(large.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
        assert!(Status::from(ApiError::bad_input("x")).metadata().is_empty());
        let foreign = Status::from(ApiError::bad_input("茶".repeat(950)));
        assert_eq!(foreign.message(), "茶".repeat(4096 / 9));
        assert_eq!(Status::from(ApiError::bad_input("%".repeat(900))).message().len(), 900);
        let compressed = Status::from(ApiError::compressed("x"));
        assert_eq!(compressed.code(), Code::Unimplemented);
        assert_eq!(compressed.metadata().get("grpc-accept-encoding").unwrap(), "identity");
    }
}

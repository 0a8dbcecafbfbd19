//! What the API server says where a ResourceQuota has no room for a pod, and whether there would be room if another one went.

/// Whether what was asked for fits into the quota while nothing else uses it: `exceeded quota: NAME, requested: a=1,b=2, used: …,
/// limited: a=4,b=4`. False where the sentence cannot be read.
#[must_use]
pub fn room_would_help(sentence: &str) -> bool {
    let Some((_, rest)) = sentence.split_once("exceeded quota: ") else { return false };
    let list = |name: &str| {
        let (_, rest) = rest.split_once(name)?;
        let end = rest.find(", used: ").or_else(|| rest.find(", limited: ")).unwrap_or(rest.len());
        Some(rest[..end].split(',').filter_map(|part| part.trim().split_once('=')).collect::<Vec<_>>())
    };
    let (Some(requested), Some(limited)) = (list("requested: "), list("limited: ")) else { return false };
    let limit = |resource: &str| limited.iter().find(|(name, _)| *name == resource).map(|(_, quantity)| *quantity);
    let fits = |(resource, quantity): &(&str, &str)| {
        let (asked_for, limit) = (amount(quantity), limit(resource).and_then(amount));
        asked_for.is_some_and(|asked_for| limit.is_some_and(|limit| asked_for <= limit))
    };
    !requested.is_empty() && requested.iter().all(fits)
}

/// The number of a quantity as Kubernetes writes it: `1500m`, `2`, `4Gi`, `1e3`.
#[must_use]
pub fn amount(quantity: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let scaled = SUFFIXES.iter().find_map(|(suffix, scale)| Some((quantity.trim().strip_suffix(suffix)?, *scale)));
    let (number, scale) = scaled.unwrap_or((quantity.trim(), 1.0));
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_than_the_quota_allows_at_all_fits_never() {
        let said = |requested: &str, used: &str, limited: &str| {
            format!(
                "pods \"x\" is forbidden: exceeded quota: tight, requested: {requested}, used: {used}, limited: {limited}"
            )
        };
        for (requested, used, limited, helps) in [
            ("pods=1", "pods=1", "pods=1", true),
            ("requests.nvidia.com/gpu=1", "requests.nvidia.com/gpu=1", "requests.nvidia.com/gpu=1", true),
            ("cpu=500m,memory=3Gi", "cpu=1,memory=3Gi", "cpu=1,memory=4Gi", true),
            ("memory=8Gi", "memory=3Gi", "memory=4Gi", false),
            ("cpu=500m,memory=5G", "cpu=1,memory=3Gi", "cpu=1,memory=4Gi", false),
            ("memory=many", "memory=3Gi", "memory=4Gi", false),
            ("pods=1", "pods=0", "pods=0", false),
        ] {
            assert_eq!(room_would_help(&said(requested, used, limited)), helps, "{requested} of {limited}");
        }
        assert!(!room_would_help("admission webhook \"policy\" denied the request"));
    }
}

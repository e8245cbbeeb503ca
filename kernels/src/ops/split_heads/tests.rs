//! Heads against the definition, step by step.

use super::*;
use candle_core::{D, DType, Device};

fn random(dims: (usize, usize)) -> Tensor {
    Tensor::randn(0f32, 1.0, dims, &Device::Cpu).unwrap()
}

/// Step by step, with Candle's operations.
fn expected(op: &SplitHeads, qkv: [&Tensor; 3]) -> [Tensor; 3] {
    [0, 1, 2].map(|i| {
        let x = qkv[i];
        let heads = if i == 0 { op.heads } else { op.kv_heads };
        let x = op.biases.map_or(x.clone(), |biases| x.broadcast_add(biases[i]).unwrap());
        let n = x.dim(0).unwrap();
        let mut x =
            x.reshape((n, heads, op.head_dim)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        if let Some(norms) = op.norms.filter(|_| i < 2) {
            x = x
                .apply_op1_no_bwd(&super::super::Norm { scale: norms[i], added: None, rotation: None })
                .unwrap();
        }
        if i < 2 {
            let half = op.head_dim / 2;
            let [a, b] = [0, half].map(|start| x.narrow(D::Minus1, start, half).unwrap());
            let by = |t: &Tensor, by: &Tensor| t.broadcast_mul(by).unwrap();
            let (low, high) = (by(&a, op.cos) - by(&b, op.sin), by(&a, op.sin) + by(&b, op.cos));
            x = Tensor::cat(&[low.unwrap(), high.unwrap()], D::Minus1).unwrap();
        }
        x
    })
}

#[test]
fn equals_the_definition() {
    for (heads, kv_heads, n, dim) in [(4, 2, 1, 8), (3, 3, 5, 64), (8, 1, 70, 64)] {
        let qkv = [heads, kv_heads, kv_heads].map(|heads| random((n, heads * dim)));
        let biases = [heads, kv_heads, kv_heads].map(|heads| random((1, heads * dim)).squeeze(0).unwrap());
        let factors = [0, 1].map(|_| random((1, dim)).squeeze(0).unwrap());
        let (cos, sin) = (random((n, dim / 2)), random((n, dim / 2)));
        for (biased, normed) in [(false, false), (true, false), (false, true), (true, true)] {
            let op = SplitHeads {
                heads,
                kv_heads,
                head_dim: dim,
                biases: biased.then_some(biases.each_ref()),
                norms: normed.then_some(factors.each_ref().map(|factor| RmsScale { factor, eps: 1e-6 })),
                cos: &cos,
                sin: &sin,
            };
            let found = op.split(qkv.each_ref()).unwrap();
            let expected = expected(&op, qkv.each_ref());
            let held =
                [0, 1].map(|_| Tensor::zeros((kv_heads, n + 3, dim), DType::F32, &Device::Cpu).unwrap());
            let q = op.append(qkv.each_ref(), held.each_ref(), 2).unwrap();
            let appended = held.map(|held| held.narrow(1, 2, n).unwrap());
            for found in [found, [q, appended[0].clone(), appended[1].clone()]] {
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.dims(), expected.dims());
                    let errors = (found - expected).unwrap().abs().unwrap().flatten_all().unwrap();
                    let near = errors.to_vec1::<f32>().unwrap().iter().all(|&error| error < 2e-5);
                    assert!(near, "{heads} {n} {biased} {normed}");
                }
            }
        }
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let (q, k, table) = (random((3, 16)), random((3, 8)), random((3, 4)));
    let op = SplitHeads {
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        biases: None,
        norms: None,
        cos: &table,
        sin: &table,
    };
    assert!(op.split([&q, &k, &k]).is_ok());
    let short = random((2, 4));
    let narrow = random((3, 4));
    for (op, qkv) in [
        (op, [&k, &k, &k]),
        (op, [&q, &k, &q]),
        (SplitHeads { cos: &short, ..op }, [&q, &k, &k]),
        (SplitHeads { biases: Some([&q, &k, &k]), ..op }, [&q, &k, &k]),
        (SplitHeads { head_dim: 7, ..op }, [&q, &k, &k]),
        (op, [&q, &k, &narrow]),
    ] {
        let error = op.split(qkv).unwrap_err().to_string();
        assert!(error.contains(NAME), "{error}");
    }
}

use candle_core::{Device, Tensor};

use super::*;
use crate::testing::{check_levels, close, values};

#[test]
fn silu_mul_agrees_with_candle() {
    let count = 20_001;
    let gate: Vec<f32> = values(5, count).iter().map(|v| v * 20.0).collect();
    let up = values(6, count);
    let tensor = Tensor::from_slice(&gate, count, &Device::Cpu).unwrap().silu().unwrap();
    let expected = (tensor * Tensor::from_slice(&up, count, &Device::Cpu).unwrap()).unwrap().to_vec1::<f32>().unwrap();
    check_levels("silu_mul", &expected, 1e-5, |isa, pool| {
        let mut out = gate.clone();
        silu_mul(isa, pool, &mut out, &up);
        out
    });
}

#[test]
fn softmax_helpers() {
    for count in [1, 5, 16, 33, 1000] {
        let x: Vec<f32> = values(9, count).iter().map(|v| v * 30.0).collect();
        let plain = x.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln() as f32;
        for isa in Isa::available() {
            assert!((log_sum_exp(isa, &x) - plain).abs() < 1e-5, "{isa} {count}");
            let best = argmax(isa, &x).unwrap();
            assert!(x.iter().all(|value| *value <= x[best]) && x[..best].iter().all(|value| *value < x[best]));
        }
    }
    for isa in Isa::available() {
        let mut ties = vec![0.0; 50];
        (ties[20], ties[40]) = (1.0, 1.0);
        assert_eq!(argmax(isa, &ties), Some(20), "{isa}: the first of equals");
        assert_eq!(argmax(isa, &[]), None);
        assert_eq!(argmax(isa, &[f32::NAN; 3]), None);
        assert_eq!(argmax(isa, &[f32::NEG_INFINITY; 3]), Some(0));
    }
}

#[test]
fn weights_are_relative_to_the_best_and_nothing_stays_nothing() {
    let x: Vec<f32> = (0..37).map(|i| if i % 5 == 2 { f32::NEG_INFINITY } else { (i * 7 % 37) as f32 * 0.3 }).collect();
    let max = x.iter().copied().fold(f32::MIN, f32::max);
    for isa in Isa::available() {
        for (temperature, least) in [(1.0, 0.0), (0.7, 0.05), (20.0, 0.9)] {
            let mut weights = vec![7.0; 3];
            softmax_weights(isa, &x, max, temperature, least, &mut weights);
            let expected = x.iter().map(|x| ((x - max) / temperature).exp());
            let expected: Vec<f32> = expected.map(|weight| if weight < least { 0.0 } else { weight }).collect();
            close(&format!("{isa}, temperature {temperature}"), &weights, &expected, 1e-6);
            let none = |weights: &[f32]| weights.iter().map(|weight| *weight == 0.0).collect::<Vec<_>>();
            assert_eq!(none(&weights), none(&expected), "{isa}, temperature {temperature}");
        }
    }
}

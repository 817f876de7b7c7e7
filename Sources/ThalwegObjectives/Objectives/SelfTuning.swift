import Glibc
import ThalwegCore

/// A linear layer whose weights answer to hyper-parameters: that of self-tuning networks.
///
///     c = hyper·projectionᵀ = (c_w, c_b);   out = scale·(x·Wᵀ + b) + c_w∘(x·Vᵀ) + c_b∘v
///
/// x (B, in), weight W and response V (out, in), bias b and response_bias v (out,), projection (2·out, H),
/// hyper (B, H), scale (). The result `output` is the layer's; the value is ⟨upstream, output⟩, so that its gradients
/// are the layer's pull-back. Without `upstream` (B, out) it is the sum.
/// Differs  nothing from the authors' linear layer. projection has rows (two, out) as (c_w, c_b) one after the other.
/// Source   MacKay, Vicol, Lorraine, Duvenaud and Grosse, 2019, arXiv:1903.03088.
struct STNHyperLinear: Objective {
  static let method = Method(
    "stn_hyper_linear", .objective, "A linear layer whose weights answer to hyper-parameters, and its pull-back.",
    rule: """
      (c_w, c_b) = hyper projection';  out = scale*(x W' + b) + c_w*(x V') + c_b*v;  value = <upstream, out>
      """,
    source: "MacKay, Vicol, Lorraine, Duvenaud, Grosse, 2019, arXiv:1903.03088",
    inputs: [
      .variable("x", "B, in", "inputs"), .variable("weight", "out, in", "W"), .variable("bias", "out", "b"),
      .variable("response", "out, in", "V"), .variable("response_bias", "out", "v"),
      .variable("projection", "2, out, H", "maps hyper-parameters to (c_w, c_b)"),
      .variable("hyper", "B, H", "hyper-parameters of each sample"),
      .variable("scale", "", "factor of the plain layer"),
      .constant("upstream", "B, out", "gradient for the output; ones when left out", optional: true),
      .result("output", "B, out", "what the layer gives"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes["B"], from = x.sizes["in"], to = x.sizes["out"], width = x.sizes["H"]
    let input = try x["x"], W = try x["weight"], b = try x["bias"], V = try x["response"]
    let v = try x["response_bias"], P = try x["projection"], hyper = try x["hyper"], s = Double(try x["scale"][0])
    let up = x.optional("upstream"), space = Workspace()
    defer { space.close() }
    // c_w, c_b, x·Wᵀ + b, x·Vᵀ of every sample and output
    let parts = try space.room(try area(4, n, to), Double.self)
    func fill(_ i: Int, _ o: Int) -> Double {
      var p = (0.0, 0.0, Double(b[o]), 0.0)
      for k in 0..<width {
        p.0 += Double(hyper[i * width + k]) * Double(P[o * width + k])
        p.1 += Double(hyper[i * width + k]) * Double(P[(to + o) * width + k])
      }
      for j in 0..<from {
        p.2 += Double(input[i * from + j]) * Double(W[o * from + j])
        p.3 += Double(input[i * from + j]) * Double(V[o * from + j])
      }
      let at = parts + 4 * (i * to + o)
      (at[0], at[1], at[2], at[3]) = p
      return s * p.2 + p.0 * p.3 + p.1 * Double(v[o])
    }
    let output = try cache?.keep("output", n * to, T.self)
    let value = Rows.sum(n, work: 4 * to * (from + width)) { i in
      var sum = 0.0
      for o in 0..<to {
        let y = fill(i, o)
        output?[i * to + o] = T(y)
        sum += y * (up.map { Double($0[i * to + o]) } ?? 1)
      }
      return sum
    }
    guard let cache else { return value }
    func room(_ count: Int) throws(Failure) -> UnsafeMutablePointer<Double> { try space.room(count, Double.self) }
    let gx = try room(n * from), gW = try room(to * from), gb = try room(to), gV = try room(to * from)
    let gv = try room(to), gP = try room(2 * to * width), gh = try room(n * width)
    var gs = 0.0
    for i in 0..<n {
      for o in 0..<to {
        let at = parts + 4 * (i * to + o), u = up.map { Double($0[i * to + o]) } ?? 1
        let (cw, cb, plain, moved) = (at[0], at[1], at[2], at[3])
        gs += u * plain
        gb[o] += u * s
        gv[o] += u * cb
        for j in 0..<from {
          let a = Double(input[i * from + j])
          gW[o * from + j] += u * s * a
          gV[o * from + j] += u * cw * a
          gx[i * from + j] += u * (s * Double(W[o * from + j]) + cw * Double(V[o * from + j]))
        }
        for k in 0..<width {
          let a = Double(hyper[i * width + k]), (dw, db) = (u * moved, u * Double(v[o]))
          gP[o * width + k] += dw * a
          gP[(to + o) * width + k] += db * a
          gh[i * width + k] += dw * Double(P[o * width + k]) + db * Double(P[(to + o) * width + k])
        }
      }
    }
    for (name, p, count) in [
      ("x", gx, n * from), ("weight", gW, to * from), ("bias", gb, to), ("response", gV, to * from),
      ("response_bias", gv, to), ("projection", gP, 2 * to * width), ("hyper", gh, n * width),
    ] {
      let g = try cache.keep(name, count, T.self)
      for i in 0..<count { g[i] = T(p[i]) }
    }
    try cache.keep("scale", numbers: [gs], T.self)
    return value
  }
}

/// Hyper-parameters with noise on each, and the entropy that keeps the noise from vanishing.
///
///     perturbed = raw + softplus(rho)·noise, one row a sample;   entropy = Σ log(softplus(rho)·√(2πe))
///     value = ⟨upstream, perturbed⟩ − entropy_weight·entropy
///
/// raw, rho (k,), noise (B, k). upstream (B, k), the gradient of the validation loss for the perturbed values, is 0
/// when left out. Hyper-parameters that cannot vary inside a minibatch take row 0, by the host.
/// Differs  nothing from the authors' code.
/// Source   MacKay, Vicol, Lorraine, Duvenaud and Grosse, 2019, arXiv:1903.03088.
struct STNPerturb: Objective {
  static let method = Method(
    "stn_perturb", .objective, "Hyper-parameters with noise on each, and the entropy of that noise.",
    rule: """
      perturbed = raw + softplus(rho)*noise;  entropy = sum log(softplus(rho)*sqrt(2 pi e))
      value = <upstream, perturbed> - entropy_weight*entropy
      """,
    source: "MacKay, Vicol, Lorraine, Duvenaud, Grosse, 2019, arXiv:1903.03088",
    parameters: [.number("entropy_weight", 1e-5, .atLeast(0), "weight of the entropy")],
    inputs: [
      .variable("raw", "k", "hyper-parameters, without bounds"), .variable("rho", "k", "scales, before softplus"),
      .constant("noise", "B, k", "standard normal numbers"),
      .constant("upstream", "B, k", "gradient for the perturbed values; 0 when left out", optional: true),
      .result("perturbed", "B, k", "the perturbed values"), .result("entropy", "", "entropy of the noise"),
    ])
  let weight: Double
  init(_ h: Hyper) { weight = h.entropy_weight }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let raw = try x["raw"], rho = try x["rho"], noise = try x["noise"], up = x.optional("upstream")
    let n = x.sizes["B"], k = x.sizes["k"]
    let out = try cache?.keep("perturbed", n * k, T.self)
    let gRaw = try cache?.keep("raw", k, T.self), gRho = try cache?.keep("rho", k, T.self)
    var value = 0.0, entropy = 0.0
    for j in 0..<k {
      let scale = softplus(Double(rho[j])), slope = sigmoid(Double(rho[j]))
      var sums = (0.0, 0.0)
      for b in 0..<n {
        let z = Double(noise[b * k + j]), p = Double(raw[j]) + scale * z, u = up.map { Double($0[b * k + j]) } ?? 0
        out?[b * k + j] = T(p)
        value += u * p
        sums = (sums.0 + u, sums.1 + u * z)
      }
      entropy += log(scale) + 0.5 * log(2 * Double.pi) + 0.5
      gRaw?[j] = T(sums.0)
      gRho?[j] = T(slope * (sums.1 - weight / scale))
    }
    try cache?.keep("entropy", numbers: [entropy], T.self)
    return value - weight * entropy
  }
}

/// Hyper-parameters brought into their ranges.
///
///     both ends finite: low + (high − low)·sigmoid(raw);   one: low + softplus(raw), or high − softplus(−raw)
///     none: raw;   discrete: rounded down after that;   value = ⟨upstream, mapped⟩
///
/// raw (k,); low and high (k,), infinite where there is no end; upstream (k,) is 1 when left out. The gradient of what
/// is rounded is that of the map.
/// Errors   TW_ERROR_RANGE: low above high.
/// Differs  the card names the maps; which softplus belongs to an upper end is decided here.
/// Source   MacKay, Vicol, Lorraine, Duvenaud and Grosse, 2019, arXiv:1903.03088.
struct STNRangeMap: Objective {
  static let method = Method(
    "stn_range_map", .objective, "Hyper-parameters brought into their ranges.",
    rule: """
      mapped = low + (high - low)*sigmoid(raw);  one end: low + softplus(raw), high - softplus(-raw);  none: raw
      discrete: rounded down;  value = <upstream, mapped>
      """,
    source: "MacKay, Vicol, Lorraine, Duvenaud, Grosse, 2019, arXiv:1903.03088",
    inputs: [
      .variable("raw", "k", "hyper-parameters, without bounds"), .constant("low", "k", "lower ends"),
      .constant("high", "k", "upper ends"),
      .integer("discrete", "k", "1 where the value is rounded down; 0 when left out", optional: true),
      .constant("upstream", "k", "gradient for the mapped values; 1 when left out", optional: true),
      .result("mapped", "k", "the values in their ranges"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let raw = try x["raw"], low = try x["low"], high = try x["high"], k = x.sizes["k"]
    let discrete = x.optionalIntegers("discrete"), up = x.optional("upstream")
    let out = try cache?.keep("mapped", k, T.self), g = try cache?.keep("raw", k, T.self)
    var value = 0.0
    for j in 0..<k {
      let r = Double(raw[j]), a = Double(low[j]), b = Double(high[j]), u = up.map { Double($0[j]) } ?? 1
      guard a <= b else {
        throw Failure(Status.range, "`low` must not be above `high`, got \(text(a)) and \(text(b)) at element \(j)")
      }
      var (y, slope) = (r, 1.0)
      if a.isFinite, b.isFinite {
        let s = sigmoid(r)
        (y, slope) = (a + (b - a) * s, (b - a) * s * sigmoid(-r))
      } else if a.isFinite {
        (y, slope) = (a + softplus(r), sigmoid(r))
      } else if b.isFinite {
        (y, slope) = (b - softplus(-r), sigmoid(-r))
      }
      if let discrete, discrete[j] != 0 { y = y.rounded(.down) }
      out?[j] = T(y)
      g?[j] = T(u * slope)
      value += u * y
    }
    return value
  }
}

import ThalwegCore

/// The loss that a step is asked for alone, where a source before the one that asks makes one gradient of several
/// minibatches: it is asked for each of them, and becomes one as their gradients do.
struct LossWindow {
  /// The minibatch that the first of them is asked for, how many are answered, and their sums.
  var base: UInt64 = 0, place = 0, sum = 0.0, weight = 0.0
  /// Requests of this step that are more than one for a loss.
  var extra = 0

  var numbers: [Double] {
    [Double(base & 0xffff_ffff), Double(base >> 32), Double(place), sum, weight, Double(extra)]
  }
  init() {}
  /// nil: they make no sense.
  init?(_ n: [Double]) {
    guard n.count == 6, [0, 1, 2, 5].allSatisfy({ n[$0] >= 0 && n[$0] < 0x1p32 && n[$0] == n[$0].rounded() }) else {
      return nil
    }
    (base, place, sum, weight, extra) = (UInt64(n[0]) | UInt64(n[1]) << 32, Int(n[2]), n[3], n[4], Int(n[5]))
  }
}

extension Optimizer {
  /// Equal tags mean the same minibatch: a number of the call, and of the minibatch where it is another one.
  func tag(_ sample: UInt64) -> UInt64 { UInt64(calls) &* 2 &+ sample }
  func fill(_ ask: Ask, _ sample: UInt64) -> Request {
    // of every minibatch whose gradient at the parameters is the first that a source sees
    let first = needsLoss && !opens && ask.kind == .gradient && stack.allSatisfy { $0.phase == 0 }
    return Request(
      kind: first ? .lossAndGradient : ask.kind, pass: phase + (lossFirst ? 1 : 0) + lossWindow.extra,
      tag: tag(sample), index: ask.index, count: ask.count)
  }

  /// Takes the answer to a request for a loss alone: the request for that of the next minibatch, or nil when all are
  /// there and `observed` has what they come to.
  func takeLoss(_ x: Double) throws(Failure) -> Request? {
    if lossWindow.place == 0 { lossWindow.base = pending.tag &- tag(0) }
    var samples = [lossWindow.base], weight = 1.0, divides = true
    for case .source(let k) in partsBeforeAsker {
      guard let window = try sources[k].source?.window(SourceIO(SourceDesk(self, sources[k]))) else { continue }
      samples = samples.flatMap { s in (0..<max(1, window.minibatches)).map { minibatch($0, of: k, from: s) } }
      (weight, divides) = (weight * window.weight, divides && window.divides)
    }
    if samples.count == 1 {
      observed["loss"] = x
      return nil
    }
    lossWindow.sum += weight == 0 ? 0 : weight * x
    lossWindow.weight += weight
    lossWindow.place += 1
    if lossWindow.place < samples.count {
      lossWindow.extra += 1
      var next = pending
      (next.pass, next.tag) = (pending.pass + 1, tag(samples[lossWindow.place]))
      return next
    }
    observed["loss"] = divides ? lossWindow.sum / lossWindow.weight : lossWindow.sum
    (lossWindow.place, lossWindow.sum, lossWindow.weight) = (0, 0, 0)
    return nil
  }
}

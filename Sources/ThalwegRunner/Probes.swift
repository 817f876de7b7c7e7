import CThalweg
import ThalwegCore

/// The vector of a request, as tensors.
extension Optimizer {
  /// The slot of the source with the vector of the present request.
  package var probeSlot: (stage: Int, slot: Int)? {
    guard pending.kind == .hessianVector || pending.kind == .logitDerivatives, let s = stack.last.flatMap(stage),
      let k = s.source?.probe
    else { return nil }
    return (s.id, probeIndex(s, k))
  }
  func probeIndex(_ s: Stage, _ k: Int) -> Int {
    if s.role == .source { return k }
    let shape = Shape(dimensions: [1])
    return (s.element?.slots(s.founding, shape) ?? s.whole?.slots(s.founding, shape) ?? []).count + k
  }

  /// Descriptions of a source's slot as tensors, zeros where a tensor is of another pipeline; valid until the next
  /// call.
  func probes(_ stage: Int, _ slot: Int) -> UnsafeMutablePointer<tw_tensor> {
    let s = stages[stage]
    if probeList.count != bound.count {
      for p in probeList { p.shape.deallocate() }
      probeList = bound.map { b in
        let p = UnsafeMutablePointer<Int64>.allocate(capacity: max(1, b.view.shape.count))
        for (i, d) in b.view.shape.enumerated() { p[i] = Int64(d) }
        return (p, b.view.shape.count)
      }
      probeTensor?.deallocate()
      probeTensor = .allocate(capacity: max(1, bound.count))
    }
    let out = probeTensor ?? .allocate(capacity: 1)
    for i in 0..<bound.count {
      (out + i).initialize(
        to: tw_tensor(
          data: uses(s, bound[i]) ? records[i].slot(stage, slot).base : probeZeros?.base,
          dtype: records[i].isDouble ? DType.f64.rawValue : DType.f32.rawValue,
          ndim: Int32(probeList[i].ndim),
          shape: UnsafePointer(probeList[i].shape), strides: nil, flags: UInt32(TW_TENSOR_READ_ONLY), role: 0,
          reserved: (0, 0, 0)))
    }
    return out
  }
}

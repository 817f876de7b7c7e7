/// Runs a transform, element-wise or whole, once over dense memory: v is changed, w is its companion.
@inlinable public func runOnce<T: Real>(
  _ pair: (ElementKernels?, WholeKernels?), _ h: Hyper, _ v: UnsafeMutablePointer<T>, _ w: UnsafeMutablePointer<T>,
  _ shape: Shape, t: Double
) throws(Failure) {
  var c = StepContext()
  (c.lr, c.ndim, c.count, c.rows, c.columns) = (t, shape.ndim, shape.count, shape.rows, shape.columns)
  c.isDouble = T.isDouble
  let vp = UnsafeMutableRawPointer(v), wp = UnsafeMutableRawPointer(w)
  if let e = pair.0 {
    let space = try Memory(aligned(e.size) + Operands.padBytes, .current, zeroed: false)
    defer { withExtendedLifetime(space) {} }
    let p = space.base
    e.prepare(h, c, p)
    let o = Operands(
      x: vp, g: wp, slots: SlotPointers(repeating: p), used: 0, count: shape.count, index: 0, pad: p + aligned(e.size))
    if T.isDouble { e.map.1(p, Apply(), o) } else { e.map.0(p, Apply(), o) }
  } else if let whole = pair.1 {
    try whole.accepts(h, shape)
    let space = try Memory(whole.workspace(h, shape, MemoryLayout<T>.stride), .current, zeroed: false)
    defer { withExtendedLifetime(space) {} }
    func tensor<U: Real>(_: U.Type) -> Whole<U> {
      Whole(
        v: vp.assumingMemoryBound(to: U.self), w: wp.assumingMemoryBound(to: U.self), slots: [], shape: shape,
        workspace: space.base)
    }
    if T.isDouble { try whole.f64(h, c, tensor(Double.self)) } else { try whole.f32(h, c, tensor(Float.self)) }
  }
}

/// An element-wise change that a source makes: parameters, gradients and its own state.
public protocol ElementOperation: Sendable {
  func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>)
}
/// Sums that a source takes over all elements.
public protocol ElementSum: Sendable {
  func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums)
}
/// What a source does with slots of one tensor as a whole.
public protocol SlotWork {
  associatedtype Result
  func callAsFunction<T: Real>(_ slots: [UnsafeMutablePointer<T>], _ shape: Shape) throws(Failure) -> Result
}

public typealias PlainKernel = @Sendable (Operands) -> Void
public typealias PlainMeasure = @Sendable (Operands, UnsafeMutablePointer<Sums>) -> Void

/// A loop for each case, so that an operand which is neither used nor written is not read.
@inlinable @inline(never)
public func plainKernel<O: ElementOperation, L: Lane>(_ op: O, _: L.Type, writesX: Bool = true, writesG: Bool = true)
  -> PlainKernel
{
  if writesG { return { o in walk(o, op, L.self, true, true) } }
  if writesX { return { o in walk(o, op, L.self, true, false) } }
  return { o in walk(o, op, L.self, false, false) }
}

@inlinable @inline(__always)
func walk<O: ElementOperation, L: Lane>(_ o: Operands, _ op: O, _: L.Type, _ writesX: Bool, _ writesG: Bool) {
  var v = Vectors<L>(o)
  repeat {
    while v.next() {
      var a = L.load(v.x), b = L.load(v.g)
      op(&a, &b, v.s)
      if writesX { a.store(v.x) }
      if writesG { b.store(v.g) }
    }
  } while v.turn()
  v.finish(writesX: writesX, writesG: writesG)
}

@inlinable @inline(never)
public func plainMeasure<O: ElementSum, L: Lane>(_ op: O, _: L.Type) -> PlainMeasure {
  { o, total in total.pointee = addUp(o, op, L.self, total.pointee) }
}

@inlinable @inline(__always)
func addUp<O: ElementSum, L: Lane>(_ o: Operands, _ op: O, _: L.Type, _ before: Sums) -> Sums {
  var sums = before
  var v = Vectors<L>(o)
  repeat {
    while v.next() {
      fetchAhead(v.x)
      op(L.load(v.x), L.load(v.g), v.s, &sums)
    }
  } while v.turn()
  v.finish(writesX: false)
  return sums
}

/// Adds to sum 0 what is not finite of x or, with `both`, of g: how many lanes of a vector saw something. A difference
/// is 0, or NaN, which stays.
@inlinable @inline(never)
public func nonFiniteMeasure<L: Lane>(_: L.Type, both: Bool) -> PlainMeasure {
  { o, total in
    var v = Vectors<L>(o), seen = L(0), seenToo = L(0)  // two: an addition need not wait for the other
    repeat {
      while v.next() {
        fetchAhead(v.x)
        let x = L.load(v.x)
        seen = seen + (x - x)
        if both {
          fetchAhead(v.g)
          let g = L.load(v.g)
          seenToo = seenToo + (g - g)
        }
      }
    } while v.turn()
    seen = seen + seenToo
    total.pointee.add(0, L.select(L.equal(seen, seen), L(0), L(1)))
  }
}

/// Whether tensors share memory, decided for their elements and not for the ranges that these lie in.
///
/// Two views share a byte when a bounded equation c₀·x₀ + c₁·x₁ + ... = t, 0 ≤ xₖ ≤ uₖ, has a solution in whole numbers: the c are the strides
/// of both, those of the second counted from its other end. Such an equation can be dear (it contains the subset sums), but layouts of
/// real programs are nested, and for these a few divisions answer it. A search that takes longer than a fixed amount of work is given up.
package enum Overlap {
  package enum Answer: Sendable {
    case no, yes
    /// The search was given up; to be taken for a yes.
    case unknown

    /// "share memory", or how sure that is.
    package var words: String { self == .unknown ? "may share memory (their strides are too intricate to tell)" : "share memory" }
  }

  /// Two views that share memory, by their numbers; the first is the one that stands first in its list.
  package struct Meeting: Sendable {
    package let first: Int, second: Int
    package let answer: Answer
  }

  /// Trials for one question, and for all questions of one call: some milliseconds, and less than a second.
  private static let most = 1 << 17, mostOfAll = 1 << 24

  /// Whether two views have a byte in common. Absent and empty ones have none.
  package static func between(_ a: View, _ b: View) -> Answer {
    var work = most
    return a.hasMemory && b.hasMemory ? between(a, a.extent, b, b.extent, &work) : .no
  }

  /// Whether two elements of a view are the same bytes.
  package static func within(_ v: View) -> Answer {
    guard v.hasMemory, !v.dense else { return .no }
    let axes = zip(v.shape, v.strides).filter { $0.0 > 1 }.map { (last: $0.0 - 1, step: abs($0.1)) }.sorted { $0.step > $1.step }
    guard axes.allSatisfy({ $0.step != 0 }) else { return .yes }
    // Two places that coincide differ first in some axis k, by 1 to `last`; the axes inside must make up for that, in either direction.
    var work = most, inside = 0, answer = Answer.no
    for k in axes.indices.reversed() {
      let (last, step) = axes[k]
      if step <= inside {
        let found = Search.run(axes.count + 1, &work) { s in
          s.add(step, last - 1)
          for j in axes[(k + 1)...] { s.add(j.step, 2 * j.last) }
          return inside + step * last
        }
        if found == .yes { return .yes }
        if found == .unknown { answer = .unknown }
      }
      inside += step * last
    }
    return answer
  }

  /// The first two views of a list that share memory.
  package static func first(among views: [View]) -> Meeting? { Index(views).meeting }

  /// The first of `views` that shares memory with one of the index: its number, then the number in the index.
  package static func first(_ views: [View], against index: Index) -> Meeting? {
    guard !index.isEmpty else { return nil }
    var work = mostOfAll, near = 0
    for (i, v) in views.enumerated() where v.hasMemory {
      if let (j, answer) = index.first(v, &near, &work) { return Meeting(first: i, second: j, answer: answer) }
    }
    return nil
  }

  fileprivate typealias Extent = (low: UInt, high: UInt)

  private static func between(_ a: View, _ x: Extent, _ b: View, _ y: Extent, _ work: inout Int) -> Answer {
    guard x.low < y.high, y.low < x.high else { return .no }
    if a.dense, b.dense { return .yes }
    // Positions are counted in the smaller element, which both are aligned to.
    let unit = min(a.dtype.size, b.dtype.size), wideA = a.dtype.size / unit, wideB = b.dtype.size / unit
    // From a's first byte to b's last: less than the two extents together.
    let span = Int(bitPattern: y.high &- x.low)
    guard span % unit == 0 else { return .unknown }
    return Search.run(a.shape.count + b.shape.count + 1, &work) { s in
      for (n, stride) in zip(a.shape, a.strides) where n > 1 { s.add(abs(stride) * wideA, n - 1) }
      for (n, stride) in zip(b.shape, b.strides) where n > 1 { s.add(abs(stride) * wideB, n - 1) }
      s.add(1, wideA + wideB - 2)
      return span / unit - 1
    }
  }

  /// Views in the order of their addresses, made once and asked often.
  package struct Index: Sendable {
    private struct Entry {
      var extent: Extent
      /// The highest end of this entry and those before it.
      var top: UInt
      var view: Int
    }
    private var entries: [Entry] = []
    private var views: [View] = []
    package var isEmpty: Bool { entries.isEmpty }

    package init(_ views: [View] = []) { append(views) }

    package mutating func append(_ more: [View]) {
      let first = views.count
      views += more
      entries.reserveCapacity(views.count)
      for (i, v) in more.enumerated() where v.hasMemory { entries.append(Entry(extent: v.extent, top: 0, view: first + i)) }
      // Tensors are mostly allocated in their order.
      if zip(entries, entries.dropFirst()).contains(where: { $0.extent.low > $1.extent.low }) {
        entries.sort { ($0.extent.low, $0.view) < ($1.extent.low, $1.view) }
      }
      var top: UInt = 0
      for k in entries.indices {
        top = max(top, entries[k].extent.high)
        entries[k].top = top
      }
    }

    /// The first two that share memory: all pairs whose extents meet are looked at.
    package var meeting: Meeting? {
      var work = Overlap.mostOfAll
      var open: [Entry] = []
      for e in entries {
        open.removeAll { $0.extent.high <= e.extent.low }
        for o in open {
          let answer = ask(views[o.view], o.extent, e, &work)
          if answer != .no { return Meeting(first: min(o.view, e.view), second: max(o.view, e.view), answer: answer) }
        }
        open.append(e)
      }
      return nil
    }

    /// The number of a view here that shares memory with v. `near`: where the last question ended; the next is mostly beside it.
    fileprivate func first(_ v: View, _ near: inout Int, _ work: inout Int) -> (Int, Answer)? {
      let extent = v.extent
      // The last entry that begins below the end of v.
      if !begins(near, below: extent.high) || begins(near + 1, below: extent.high) {
        near += 1
        if !begins(near, below: extent.high) || begins(near + 1, below: extent.high) {
          var low = 0, high = entries.count
          while low < high {
            let middle = (low + high) / 2
            if begins(middle, below: extent.high) { low = middle + 1 } else { high = middle }
          }
          near = low - 1
        }
      }
      var k = near
      while k >= 0, entries[k].top > extent.low {
        if entries[k].extent.high > extent.low {
          let answer = ask(v, extent, entries[k], &work)
          if answer != .no { return (entries[k].view, answer) }
        }
        k -= 1
      }
      return nil
    }
    private func begins(_ k: Int, below end: UInt) -> Bool { k < 0 || (k < entries.count && entries[k].extent.low < end) }

    private func ask(_ v: View, _ extent: Extent, _ e: Entry, _ work: inout Int) -> Answer {
      var own = min(work, Overlap.most)
      let before = own
      let answer = Overlap.between(v, extent, views[e.view], e.extent, &own)
      work -= before - own
      return answer
    }
  }

  /// Whether some of cₖ·xₖ, 0 ≤ xₖ ≤ uₖ, add up to t.
  private struct Search {
    private struct Term {
      var step: Int, last: Int
      /// Of this term and those behind it: the greatest common divisor of the steps, and the largest sum.
      var divisor = 0, reach = 0
      /// Every multiple of the divisor up to the reach is a sum of this term and those behind it.
      var full = false
      /// 1/step in the whole numbers modulo `period`: which xₖ leave a rest that the terms behind can have.
      var inverse: UInt = 0, period: UInt = 1
    }
    private let terms: UnsafeMutablePointer<Term>
    private var count = 0
    private var work: Int

    /// `fill` adds at most `room` terms and returns t.
    static func run(_ room: Int, _ work: inout Int, _ fill: (inout Search) -> Int) -> Answer {
      withUnsafeTemporaryAllocation(byteCount: (room + 1) * MemoryLayout<Term>.stride, alignment: 16) { raw in
        guard let base = raw.baseAddress else { return .unknown }
        var s = Search(terms: base.bindMemory(to: Term.self, capacity: room + 1), work: work)
        let t = fill(&s)
        s.prepare()
        let answer = s.count == 0 ? (t == 0 ? .yes : .no) : s.reaches(0, t)
        work = s.work
        return answer
      }
    }
    private init(terms: UnsafeMutablePointer<Term>, work: Int) { (self.terms, self.work) = (terms, work) }

    /// Keeps the terms sorted, the largest step first; equal steps are one term.
    mutating func add(_ step: Int, _ last: Int) {
      guard last > 0, step > 0 else { return }
      var k = count
      while k > 0, terms[k - 1].step < step { k -= 1 }
      if k > 0, terms[k - 1].step == step {
        terms[k - 1].last += last
        return
      }
      for j in stride(from: count, to: k, by: -1) { (terms + j).initialize(to: terms[j - 1]) }
      (terms + k).initialize(to: Term(step: step, last: last))
      count += 1
    }

    private mutating func prepare() {
      var divisor = 0, reach = 0, full = true
      for k in stride(from: count - 1, through: 0, by: -1) {
        let step = terms[k].step
        if divisor > 0 {
          // it steps over no sum of those behind, and lands on their grid
          full = full && step % divisor == 0 && step <= reach + divisor
          let g = Search.divisor(step, divisor)
          terms[k].period = UInt(divisor / g)
          terms[k].inverse = Search.inverse(UInt(step / g) % terms[k].period, terms[k].period)
          divisor = g
        } else { divisor = step }
        reach += step * terms[k].last
        (terms[k].divisor, terms[k].reach, terms[k].full) = (divisor, reach, full)
      }
    }

    private mutating func reaches(_ k: Int, _ t: Int) -> Answer {
      let term = terms[k]
      guard t >= 0, t <= term.reach, t % term.divisor == 0 else { return .no }
      if term.full { return .yes }
      let rest = terms[k + 1].reach
      let low = UInt(t > rest ? (t - rest - 1) / term.step + 1 : 0), high = UInt(min(term.last, t / term.step))
      // x ≡ (t/g)/(step/g) modulo the period
      let product = (UInt(t / term.divisor) % term.period).multipliedFullWidth(by: term.inverse)
      let x0 = term.period.dividingFullWidth(product).remainder
      var x = low + (x0 + term.period - low % term.period) % term.period
      while x <= high {
        work -= 1
        if work < 0 { return .unknown }
        let answer = reaches(k + 1, t - term.step * Int(x))
        if answer != .no { return answer }
        x += term.period
      }
      return .no
    }

    private static func divisor(_ a: Int, _ b: Int) -> Int {
      var (a, b) = (a, b)
      while b != 0 { (a, b) = (b, a % b) }
      return a
    }
    /// a·inverse ≡ 1 modulo m, for a and m without common divisor; 0 when m is 1.
    private static func inverse(_ a: UInt, _ m: UInt) -> UInt {
      var (r, next) = (Int(m), Int(a)), (t, after) = (0, 1)
      while next != 0 {
        let q = r / next
        (r, next) = (next, r - q * next)
        (t, after) = (after, t - q * after)
      }
      return m == 1 ? 0 : UInt(t < 0 ? t + Int(m) : t)
    }
  }
}

extension View {
  /// There are bytes to share.
  var hasMemory: Bool { !absent && count > 0 }

  /// Whether elements share memory with each other, or may do so: see `Overlap.within`.
  package var overlapsItself: Bool { Overlap.within(self) != .no }
}

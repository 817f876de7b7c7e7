/// Whether tensors share memory, decided for their elements and not for the ranges that these lie in.
///
/// Two views share a byte when a bounded equation c₀·x₀ + c₁·x₁ + ... = t, 0 ≤ xₖ ≤ uₖ, has a solution in whole
/// numbers: the c are the strides of both, those of the second counted from its other end. Such an equation can be dear
/// (it contains the subset sums), but layouts of real programs are nested, and for these a few divisions answer it. A
/// search that takes longer than a fixed amount of work is given up.
public enum Overlap {
  public enum Answer: Sendable {
    case no, yes
    /// The search was given up; to be taken for a yes.
    case unknown

    /// "share memory", or how sure that is.
    public var words: String {
      self == .unknown ? "may share memory (their strides are too intricate to tell)" : "share memory"
    }
  }

  /// Two views that share memory, by their numbers; the first is the one that stands first in its list.
  public struct Meeting: Sendable {
    public let first: Int, second: Int
    public let answer: Answer
  }

  /// Trials for one question, and for all questions of one call: some milliseconds, and less than a second.
  private static let most = 1 << 17, mostOfAll = 1 << 24

  /// Whether two views have a byte in common. Absent and empty ones have none.
  public static func between(_ a: View, _ b: View) -> Answer {
    var axes: [Axis] = [], work = most
    guard a.hasMemory, b.hasMemory else { return .no }
    let x = Span(a, &axes), y = Span(b, &axes)
    return axes.withUnsafeBufferPointer { between(x, $0, y, $0, &work) }
  }

  /// Whether two elements of a view are the same bytes.
  public static func within(_ v: View) -> Answer {
    guard v.hasMemory, !v.dense else { return .no }
    let axes = zip(v.shape, v.strides).filter { $0.0 > 1 }.map { (last: $0.0 - 1, step: abs($0.1)) }
      .sorted { $0.step > $1.step }
    guard axes.allSatisfy({ $0.step != 0 }) else { return .yes }
    // Two places that coincide differ first in some axis k, by 1 to `last`; the axes inside must make up for that, in
    // either direction.
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
  public static func first(among views: [View]) -> Meeting? { Index(views).meeting }

  /// The first of `views` that shares memory with one of the index: its number, then the number in the index.
  public static func first(_ views: [View], against index: Index) -> Meeting? {
    guard !index.isEmpty else { return nil }
    var work = mostOfAll, near = 0
    for (i, v) in views.enumerated() where v.hasMemory {
      if let (j, answer) = index.first(v, &near, &work) { return Meeting(first: i, second: j, answer: answer) }
    }
    return nil
  }

  /// The first two that share memory when `views` join those of the index, behind which their numbers go on.
  public static func first(_ views: [View], joining index: Index) -> Meeting? {
    let before = index.count
    if let m = first(views, against: index) {
      return Meeting(first: m.second, second: before + m.first, answer: m.answer)
    }
    return first(among: views).map { Meeting(first: before + $0.first, second: before + $0.second, answer: $0.answer) }
  }

  /// More than one place along an axis: their distance, in bytes and upwards, and the number of the last.
  private struct Axis { var step: Int, last: Int }

  /// Where a view lies.
  private struct Span {
    /// From the first byte of the lowest element to behind the last of the highest.
    public let low: UInt, high: UInt
    public let size: Int
    public let dense: Bool
    /// Its axes in the array that goes with it; one of the elements when it is dense.
    public let first: Int, end: Int

    public init(_ v: View, _ axes: inout [Axis]) {
      (low, high) = v.extent
      (size, dense, first) = (v.dtype.size, v.dense, axes.count)
      if dense {
        axes.append(Axis(step: size, last: v.count - 1))
      } else {
        for k in v.shape.indices where v.shape[k] > 1 && v.strides[k] != 0 {
          axes.append(Axis(step: abs(v.strides[k]) * size, last: v.shape[k] - 1))
        }
      }
      end = axes.count
    }
  }
  private typealias Axes = UnsafeBufferPointer<Axis>

  private static func between(_ a: Span, _ axesA: Axes, _ b: Span, _ axesB: Axes, _ work: inout Int) -> Answer {
    guard a.low < b.high, b.low < a.high else { return .no }
    if a.dense, b.dense { return .yes }
    // Positions are counted in the smaller element, which both are aligned to.
    let unit = min(a.size, b.size), shift = unit.trailingZeroBitCount
    // From a's first byte to b's last: less than the two extents together.
    let reach = Int(bitPattern: b.high &- a.low)
    guard reach & (unit - 1) == 0 else { return .unknown }
    return Search.run(a.end - a.first + b.end - b.first + 1, &work) { s in
      for k in a.first..<a.end { s.add(axesA[k].step >> shift, axesA[k].last) }
      for k in b.first..<b.end { s.add(axesB[k].step >> shift, axesB[k].last) }
      s.add(1, (a.size + b.size) >> shift - 2)
      return reach >> shift - 1
    }
  }

  /// Views in the order of their addresses, made once and asked often.
  public struct Index: Sendable {
    private struct Entry: Sendable {
      public let span: Span
      /// The highest end of this entry and those before it.
      public var top: UInt = 0
      public let view: Int
    }
    private var entries: [Entry] = []
    private var axes: [Axis] = []
    fileprivate private(set) var count = 0
    public var isEmpty: Bool { entries.isEmpty }

    public init(_ views: [View] = []) { append(views) }

    /// The numbers of the views go on behind those that are there.
    public mutating func append(_ views: [View]) {
      if entries.isEmpty {
        entries.reserveCapacity(views.count)
        axes.reserveCapacity(views.count)
      }
      for (i, v) in views.enumerated() where v.hasMemory {
        entries.append(Entry(span: Span(v, &axes), view: count + i))
      }
      count += views.count
      // Tensors are mostly allocated in their order.
      var sorted = true
      for k in entries.indices.dropFirst() where entries[k - 1].span.low > entries[k].span.low { sorted = false }
      if !sorted { entries.sort { ($0.span.low, $0.view) < ($1.span.low, $1.view) } }
      var top: UInt = 0
      for k in entries.indices {
        top = max(top, entries[k].span.high)
        entries[k].top = top
      }
    }

    /// The first two that share memory: all pairs whose extents meet are looked at.
    public var meeting: Meeting? {
      var work = Overlap.mostOfAll
      var open: [Entry] = []
      return axes.withUnsafeBufferPointer { axes in
        for e in entries {
          if !open.isEmpty { open.removeAll { $0.span.high <= e.span.low } }
          for o in open {
            let answer = Index.ask(o.span, axes, e.span, axes, &work)
            guard answer == .no else {
              return Meeting(first: min(o.view, e.view), second: max(o.view, e.view), answer: answer)
            }
          }
          open.append(e)
        }
        return nil
      }
    }

    /// The number of a view here that shares memory with v. `near`: where the last question ended; the next is mostly
    /// beside it.
    fileprivate func first(_ v: View, _ near: inout Int, _ work: inout Int) -> (Int, Answer)? {
      let (low, high) = v.extent
      // The last entry that begins below the end of v.
      if !begins(near, below: high) || begins(near + 1, below: high) {
        near += 1
        if !begins(near, below: high) || begins(near + 1, below: high) {
          var least = 0, end = entries.count
          while least < end {
            let middle = (least + end) / 2
            if begins(middle, below: high) { least = middle + 1 } else { end = middle }
          }
          near = least - 1
        }
      }
      guard near >= 0, entries[near].top > low else { return nil }
      var own: [Axis] = []
      let span = Span(v, &own)
      return own.withUnsafeBufferPointer { own in
        axes.withUnsafeBufferPointer { axes in
          var k = near
          while k >= 0, entries[k].top > low {
            let answer = Index.ask(span, own, entries[k].span, axes, &work)
            if answer != .no { return (entries[k].view, answer) }
            k -= 1
          }
          return nil
        }
      }
    }
    private func begins(_ k: Int, below end: UInt) -> Bool { k < 0 || (k < entries.count && entries[k].span.low < end) }

    private static func ask(_ a: Span, _ x: Axes, _ b: Span, _ y: Axes, _ work: inout Int) -> Answer {
      var own = min(work, Overlap.most)
      let before = own
      let answer = Overlap.between(a, x, b, y, &own)
      work -= before - own
      return answer
    }
  }

  /// Whether some of cₖ·xₖ, 0 ≤ xₖ ≤ uₖ, add up to t.
  private struct Search {
    private struct Term {
      public var step: Int, last: Int
      /// Of this term and those behind it: the greatest common divisor of the steps, and the largest sum.
      public var divisor = 0, reach = 0
      /// Every multiple of the divisor up to the reach is a sum of this term and those behind it.
      public var full = false
      /// 1/step in the whole numbers modulo `period`: which xₖ leave a rest that the terms behind can have.
      public var inverse: UInt = 0, period: UInt = 1
    }
    private let terms: UnsafeMutablePointer<Term>
    private var count = 0
    private var work: Int

    /// `fill` adds at most `room` terms and returns t.
    public static func run(_ room: Int, _ work: inout Int, _ fill: (inout Search) -> Int) -> Answer {
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
    public mutating func add(_ step: Int, _ last: Int) {
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
        } else {
          divisor = step
        }
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
  public var hasMemory: Bool { !absent && count > 0 }

  /// Throws unless every element has memory of its own, as what is written must have.
  public func refuseOverlapWithin(_ what: String, _ status: Int = Status.layout, _ why: String = "") throws(Failure) {
    let answer = Overlap.within(self)
    guard answer == .no else { throw Failure(status, "\(what): its elements \(answer.words)\(why)") }
  }
}

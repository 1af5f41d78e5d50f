// Command testgoroutine is a vet tool that finds what ends a test from a goroutine that is not the test's own: require,
// t.Fatal and t.FailNow, in the closures that testify polls, in go statements and in handlers of HTTP servers. There they end
// the wrong goroutine: the test goes on, or waits for ever for an answer that was never sent. Such a closure collects what it
// found, and the test requires it afterwards.
//
// A helper that requires is found, too, in whatever package it stands. go vet's own testinggoroutine knows go statements
// only, and testifylint's go-require does not know what is polled.
//
//	go vet -vettool=/path/to/testgoroutine work
package main

import (
	"go/ast"
	"go/types"
	"strings"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/unitchecker"
	"golang.org/x/tools/go/ast/astutil"
	"golang.org/x/tools/go/types/typeutil"
)

func main() { unitchecker.Main(analyzer) }

var analyzer = &analysis.Analyzer{
	Name: "testgoroutine",
	Doc:  "finds what ends a test from a goroutine that is not the test's own",
	Run: func(pass *analysis.Pass) (any, error) {
		(&checker{pass, map[types.Object]bool{}}).check()
		return nil, nil
	},
	FactTypes: []analysis.Fact{new(endsTest)},
}

// endsTest is the fact of a function that may end the test that it is given.
type endsTest struct{}

func (*endsTest) AFact()         {}
func (*endsTest) String() string { return "endsTest" }

type checker struct {
	pass *analysis.Pass
	ends map[types.Object]bool // functions of this package that may end a test, and closures in variables
}

func (c *checker) check() {
	if !importsTesting(c.pass.Pkg) {
		return
	}
	for more := true; more; { // until no function is found that calls one of those found before
		more = false
		c.functions(func(f types.Object, body ast.Node) {
			if !c.ends[f] && c.firstEnd(body) != nil {
				c.ends[f], more = true, true
			}
		})
	}
	for f := range c.ends {
		if fn, ok := f.(*types.Func); ok {
			c.pass.ExportObjectFact(fn, new(endsTest))
		}
	}
	for _, file := range c.pass.Files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				c.report(n.Call.Fun, "a go statement")
			case *ast.CallExpr:
				if where := runsElsewhere(c.callee(n)); where != "" {
					for _, arg := range n.Args {
						c.report(arg, where)
					}
				}
			case *ast.FuncLit:
				if isHandler(c.pass.TypesInfo.TypeOf(n)) {
					c.report(n, "an HTTP handler")
				}
			}
			return true
		})
	}
}

func importsTesting(p *types.Package) bool {
	for _, i := range p.Imports() {
		if i.Path() == "testing" || strings.HasSuffix(i.Path(), "testify/require") {
			return true
		}
	}
	return false
}

// functions calls do with every function of the package that has a name.
func (c *checker) functions(do func(f types.Object, body ast.Node)) {
	for _, file := range c.pass.Files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Body != nil && !strings.HasPrefix(n.Name.Name, "Test") {
					do(c.pass.TypesInfo.Defs[n.Name], n.Body)
				}
			case *ast.AssignStmt: // f := func() { … }
				for i, value := range n.Rhs {
					if f, ok := value.(*ast.FuncLit); ok && i < len(n.Lhs) {
						if name, ok := n.Lhs[i].(*ast.Ident); ok {
							if o := c.pass.TypesInfo.ObjectOf(name); o != nil {
								do(o, f.Body)
							}
						}
					}
				}
			}
			return true
		})
	}
}

// report says where fn, which runs on another goroutine, may end the test.
func (c *checker) report(fn ast.Expr, where string) {
	var end ast.Node
	switch f := astutil.Unparen(fn).(type) {
	case *ast.FuncLit:
		end = c.firstEnd(f.Body)
	case *ast.Ident:
		if o := c.pass.TypesInfo.Uses[f]; c.objectEnds(o) {
			end = f
		}
	case *ast.SelectorExpr:
		if o := c.pass.TypesInfo.Uses[f.Sel]; c.objectEnds(o) {
			end = f
		}
	}
	if end != nil {
		c.pass.Reportf(end.Pos(), "this may end the test from %s, which is not the test's goroutine: collect, then require", where)
	}
}

// firstEnd returns the first call in body that may end a test. What runs on a goroutine of its own is judged by itself, and
// a subtest ends itself.
func (c *checker) firstEnd(body ast.Node) (found ast.Node) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			return false
		case *ast.AssignStmt:
			if len(n.Rhs) == 1 {
				if _, closure := n.Rhs[0].(*ast.FuncLit); closure {
					return false // judged where it is called
				}
			}
		case *ast.CallExpr:
			f := c.callee(n)
			if found == nil && c.endsByCall(f, n) {
				found = n
			}
			if runsElsewhere(f) != "" || isMethod(f, "testing", "Run") || isMethod(f, "testing", "Cleanup") {
				return false
			}
		case *ast.FuncLit:
			return !isHandler(c.pass.TypesInfo.TypeOf(n))
		}
		return found == nil
	})
	return found
}

func (c *checker) callee(call *ast.CallExpr) types.Object {
	return typeutil.Callee(c.pass.TypesInfo, call)
}

func (c *checker) objectEnds(o types.Object) bool {
	if c.ends[o] {
		return true
	}
	f, ok := o.(*types.Func)
	return ok && f.Pkg() != c.pass.Pkg && c.pass.ImportObjectFact(f, new(endsTest))
}

// endsByCall reports whether a call of f ends the test where something is not as it should be.
func (c *checker) endsByCall(f types.Object, call *ast.CallExpr) bool {
	if f == nil || f.Pkg() == nil {
		return false
	}
	switch {
	case strings.HasSuffix(f.Pkg().Path(), "testify/require"):
		// A collector of EventuallyWithT ends its own round only.
		return len(call.Args) == 0 || !strings.HasSuffix(c.pass.TypesInfo.TypeOf(call.Args[0]).String(), "assert.CollectT")
	case f.Pkg().Path() == "testing":
		for _, name := range []string{"FailNow", "Fatal", "Fatalf", "Skip", "Skipf", "SkipNow"} {
			if isMethod(f, "testing", name) {
				return true
			}
		}
		return false
	}
	return c.objectEnds(f)
}

func isMethod(o types.Object, pkg, name string) bool {
	f, ok := o.(*types.Func)
	return ok && f.Name() == name && f.Pkg() != nil && f.Pkg().Path() == pkg && f.Signature().Recv() != nil
}

// runsElsewhere names what a function does that runs the closures it is given on another goroutine.
func runsElsewhere(o types.Object) string {
	f, ok := o.(*types.Func)
	if !ok || f.Pkg() == nil {
		return ""
	}
	path := f.Pkg().Path()
	switch {
	case strings.Contains(path, "stretchr/testify/") && (strings.HasPrefix(f.Name(), "Eventually") || strings.HasPrefix(f.Name(), "Never")):
		return "a polled closure"
	case isMethod(f, "sync", "Go"), isMethod(f, "golang.org/x/sync/errgroup", "Go"):
		return "a group's goroutine"
	case (path == "time" || path == "context") && f.Name() == "AfterFunc":
		return "AfterFunc"
	}
	return ""
}

// isHandler reports whether a closure has the shape of an HTTP handler.
func isHandler(t types.Type) bool {
	s, ok := t.(*types.Signature)
	return ok && s.Params().Len() == 2 && s.Results().Len() == 0 &&
		s.Params().At(0).Type().String() == "net/http.ResponseWriter" && s.Params().At(1).Type().String() == "*net/http.Request"
}

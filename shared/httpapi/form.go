package httpapi

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/gin-gonic/gin"

	"github.com/tidemark/tidemark/shared/problem"
)

const formType = "application/x-www-form-urlencoded"

func isForm(o *openapi3.Operation) bool { return takes(o, formType) }

// formFields are the fields of the form that an operation reads, each with whether it may be there more than once; nil
// where it takes no form.
func formFields(o *openapi3.Operation) map[string]bool {
	if !isForm(o) {
		return nil
	}
	fields := map[string]bool{}
	for name, field := range o.RequestBody.Value.Content[formType].Schema.Value.Properties {
		fields[name] = field.Value.Type.Is("array")
	}
	return fields
}

// readForm parses the form in the body of c, which its handler finds parsed then. It returns what is wrong: a field that
// the operation does not read, more of one than it reads, or a body that is no form.
func (o *operation) readForm(c *gin.Context) *problem.Problem {
	if kind := c.ContentType(); kind != formType && hasBody(c.Request) {
		return &problem.Problem{Status: http.StatusUnsupportedMediaType, Detail: fmt.Sprintf("the Content-Type is %.100q: this takes %s", kind, formType)}
	}
	if err := c.Request.ParseForm(); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			p := tooLarge(large.Limit)
			return &p
		}
		return &problem.Problem{Status: http.StatusBadRequest, Detail: "the form could not be read: go back and send it again"}
	}
	takes := "none"
	if len(o.form) > 0 {
		takes = strings.Join(slices.Sorted(maps.Keys(o.form)), ", ")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Request.PostForm)) {
		repeated, read := o.form[name]
		switch n := len(c.Request.PostForm[name]); {
		case !read:
			return &problem.Problem{Status: http.StatusBadRequest, Detail: fmt.Sprintf("form field %.100q is not known here: this takes %s", name, takes)}
		case n > 1 && !repeated:
			return &problem.Problem{Status: http.StatusBadRequest, Detail: fmt.Sprintf("form field %q is there %d times: keep one", name, n)}
		}
	}
	return nil
}

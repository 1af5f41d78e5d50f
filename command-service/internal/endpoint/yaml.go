package endpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/tidemark/tidemark/shared/event"
)

// yamlLevels is how deep a YAML document may nest: a list of endpoints, each as deep as it may be, and one more, so that
// what is too deep is said by the rule for endpoints.
const yamlLevels = 34

// FromYAML returns the JSON that means the same as one YAML document, its members in their order. What JSON has no form
// for (anchors, NaN, a key that is no text) is refused. The error is an *InvalidError.
func FromYAML(text []byte) ([]byte, error) {
	d := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	err := d.Decode(&document)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, invalid([]event.FieldError{{Message: "expected YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}})
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, invalid([]event.FieldError{{Message: "expected one YAML document, found more behind it"}})
	}
	c := converter{}
	c.value("", document.Content[0], yamlLevels)
	if c.wrong != nil {
		return nil, invalid(c.wrong)
	}
	return c.out, nil
}

// converter writes JSON and gathers what has no form there.
type converter struct {
	out   []byte
	wrong []event.FieldError
}

func (c *converter) refuse(path, message string) {
	c.wrong = append(c.wrong, event.FieldError{Path: path, Message: message})
}

func (c *converter) value(path string, n *yaml.Node, levels int) {
	if levels == 0 {
		c.refuse(path, "expected fewer levels of nesting")
		return
	}
	switch n.Kind {
	case yaml.MappingNode:
		c.out = append(c.out, '{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			name := n.Content[i]
			if name.Kind != yaml.ScalarNode || name.ShortTag() != "!!str" {
				c.refuse(path, "expected names that are texts; write others in quotes")
				continue
			}
			c.out = append(append(comma(c.out, '{'), quoted(name.Value)...), ':')
			c.value(strings.TrimPrefix(path+"."+name.Value, "."), n.Content[i+1], levels-1)
		}
		c.out = append(c.out, '}')
	case yaml.SequenceNode:
		c.out = append(c.out, '[')
		for i, one := range n.Content {
			c.out = comma(c.out, '[')
			c.value(path+Place(i), one, levels-1)
		}
		c.out = append(c.out, ']')
	case yaml.ScalarNode:
		c.scalar(path, n)
	default:
		c.refuse(path, "expected a value, found an alias, which is not taken here")
	}
}

// comma goes before all but the first element.
func comma(out []byte, open byte) []byte {
	if out[len(out)-1] == open {
		return out
	}
	return append(out, ',')
}

func (c *converter) scalar(path string, n *yaml.Node) {
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		c.out = append(c.out, quoted(n.Value)...)
	case "!!null":
		c.out = append(c.out, "null"...)
	case "!!int", "!!float", "!!bool":
		if json.Valid([]byte(n.Value)) { // the same in both, and as it came
			c.out = append(c.out, n.Value...)
			return
		}
		var value any
		if err := n.Decode(&value); err != nil {
			c.refuse(path, "expected a value: "+strings.TrimPrefix(err.Error(), "yaml: "))
			return
		}
		text, err := json.Marshal(value)
		if err != nil {
			c.refuse(path, "expected a number that JSON has, found "+n.Value)
			return
		}
		c.out = append(c.out, text...)
	default:
		c.refuse(path, "expected a text, a number, true, false or null, found "+n.ShortTag())
	}
}

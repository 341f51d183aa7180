# minja as Debian has it, with what it does otherwise than Jinja mended: a template must give the prompt that the model was
# trained on. Each change is a text that must be there and what stands in its place; a newer minja without the text has
# perhaps mended it by itself, and the tests against Jinja (tests/system/test_templates.py) tell.
# Sets NK_MINJA_DIR: an include directory.
set(NK_MINJA_DIR ${CMAKE_BINARY_DIR}/minja)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${NK_MINJA_INCLUDE}/minja/minja.hpp)
file(READ ${NK_MINJA_INCLUDE}/minja/minja.hpp minja)

function(nk_minja what from to)
  string(FIND "${minja}" "${from}" at)
  if(at EQUAL -1)
    message(STATUS "minja: not changed, for it is another than was known: ${what}")
    return()
  endif()
  string(REPLACE "${from}" "${to}" minja "${minja}")
  set(minja "${minja}" PARENT_SCOPE)
endfunction()

nk_minja("a method or an element of a call's result"
[==[while (it != end && consumeSpaces() && peekSymbols({ "[", "." })) {
        if (!consumeToken("[").empty()) {]==]
[==[while (it != end && consumeSpaces() && peekSymbols({ "[", ".", "(" })) {
        if (peekSymbols({ "(" })) {
          auto location = get_location();
          auto callParams = parseCallArgs();
          value = std::make_shared<CallExpr>(location, std::move(value), std::move(callParams));
        } else if (!consumeToken("[").empty()) {]==])
nk_minja("~ of what is not defined"
[==[case Op::StrConcat: return l.to_str() + r.to_str();]==]
[==[case Op::StrConcat: return (l.is_null() ? std::string() : l.to_str()) + (r.is_null() ? std::string() : r.to_str());]==])
nk_minja("None in a list"
[==[if (is_null()) out << "null";]==]
[==[if (is_null()) out << (to_json ? "null" : "None");]==])
nk_minja("numbers with a point"
[==[if (is_number_float()) return std::to_string(get<double>());]==]
[==[if (is_number_float()) return primitive_.dump();]==])
nk_minja("an empty dictionary is false"
[==[if (is_array()) return !empty();
    return true;]==]
[==[if (is_array() || (is_object() && !is_callable())) return !empty();
    return true;]==])
nk_minja("and gives its last value"
[==[if (!l.to_bool()) return Value(false);
            return right->evaluate(context).to_bool();]==]
[==[if (!l.to_bool()) return l;
            return right->evaluate(context);]==])
nk_minja("an element that a list has not"
[==[auto index = key.get<int>();
      return array_->at(index < 0 ? array_->size() + index : index);]==]
[==[auto index = key.get<int64_t>();
      if (index < 0) index += static_cast<int64_t>(array_->size());
      if (index < 0 || index >= static_cast<int64_t>(array_->size())) return Value();
      return array_->at(static_cast<size_t>(index));]==])
nk_minja("a slice past the end"
[==[int64_t end = slice->end ? wrap(slice->end->evaluate(context).get<int64_t>()) : (step < 0 ? (int64_t)-1 : len);]==]
[==[int64_t end = slice->end ? wrap(slice->end->evaluate(context).get<int64_t>()) : (step < 0 ? (int64_t)-1 : len);
          if (start < 0) start = step < 0 ? -1 : 0;
          if (start > (int64_t)len - (step < 0)) start = (int64_t)len - (step < 0);
          if (end < -1) end = step < 0 ? -1 : 0;
          if (end > (int64_t)len) end = (int64_t)len;]==])
nk_minja("elements that are false"
[==[if (!(*array_)[i].to_bool() || !(*other.array_)[i].to_bool() || (*array_)[i] != (*other.array_)[i]) return false;]==]
[==[if ((*array_)[i] != (*other.array_)[i]) return false;]==])
nk_minja("members that are false"
[==[if (!item.second.to_bool() || !other.object_->count(item.first) || item.second != other.object_->at(item.first)) return false;]==]
[==[if (!other.object_->count(item.first) || item.second != other.object_->at(item.first)) return false;]==])
nk_minja("an element that is false is in a list"
[==[if (item.to_bool() && item == value) return true;]==]
[==[if (item == value) return true;]==])
nk_minja("tests"
[==[if (name == "defined") return !l.is_null();]==]
[==[if (name == "defined") return !l.is_null();
              if (name == "undefined") return l.is_null();
              if (name == "callable") return l.is_callable();]==])
nk_minja("a string is a sequence"
[==[if (name == "sequence") return l.is_array();]==]
[==[if (name == "sequence") return l.is_iterable();]==])
nk_minja("a loop's variables are its own"
[==[destructuring_assign(var_names, context, item);
                if (!condition || condition->evaluate(context).to_bool()) {]==]
[==[auto own_context = Context::make(Value::object(), context);
                destructuring_assign(var_names, own_context, item);
                if (!condition || condition->evaluate(own_context).to_bool()) {]==])
nk_minja("each round has variables of its own"
[==[destructuring_assign(var_names, loop_context, item);]==]
[==[loop_context = Context::make(Value::object(), context);
                  loop_context->set("loop", loop);
                  destructuring_assign(var_names, loop_context, item);]==])
nk_minja("split with a limit"
[==[} else if (method->get_name() == "split") {]==]
[==[} else if (method->get_name() == "split" && vargs.args.size() == 1 && vargs.kwargs.empty()) {]==])
nk_minja("further methods (jinja.cc)"
[==[throw std::runtime_error("Unknown method: " + method->get_name());]==]
[==[{
          auto more = context->get("method " + method->get_name());
          if (more.is_callable()) {
            vargs.args.insert(vargs.args.begin(), obj);
            return more.call(context, vargs);
          }
        }
        throw std::runtime_error("Unknown method: " + method->get_name());]==])
nk_minja("a string's length is in characters"
[==[if (is_string()) return primitive_.get<std::string>().length();]==]
[==[if (is_string()) {
      size_t n = 0;
      for (char c : primitive_.get_ref<const std::string &>()) n += (c & 0xC0) != 0x80;
      return n;
    }]==])
nk_minja("a slice of a string is of characters"
[==[if (start < end && step == 1) {
              result = s.substr(start, end - start);
            } else {
              for (int64_t i = start; step > 0 ? i < end : i > end; i += step) {
                result += s[i];
              }
            }]==]
[==[std::vector<size_t> at;
            for (size_t i = 0; i < s.size(); i++)
              if ((s[i] & 0xC0) != 0x80) at.push_back(i);
            at.push_back(s.size());
            for (int64_t i = start; step > 0 ? i < end : i > end; i += step)
              if (i >= 0 && i + 1 < (int64_t)at.size()) result.append(s, at[i], at[i + 1] - at[i]);]==])
nk_minja("an element of a string"
[==[if (it == object_->end()) return Value();
      return it->second;
    }
    return Value();]==]
[==[if (it == object_->end()) return Value();
      return it->second;
    } else if (is_string() && key.is_number_integer()) {
      const auto & s = primitive_.get_ref<const std::string &>();
      std::vector<size_t> at;
      for (size_t i = 0; i < s.size(); i++)
        if ((s[i] & 0xC0) != 0x80) at.push_back(i);
      at.push_back(s.size());
      auto index = key.get<int64_t>();
      if (index < 0) index += static_cast<int64_t>(at.size()) - 1;
      if (index < 0 || index + 1 >= static_cast<int64_t>(at.size())) return Value();
      return Value(s.substr(at[index], at[index + 1] - at[index]));
    }
    return Value();]==])
file(WRITE ${NK_MINJA_DIR}/minja/minja.hpp.new "${minja}")
configure_file(${NK_MINJA_DIR}/minja/minja.hpp.new ${NK_MINJA_DIR}/minja/minja.hpp COPYONLY) # only when it is another

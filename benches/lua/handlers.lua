-- What `cargo xtask bench lua requests` asks nginx for: four kinds of work that services do in Lua.

local M = {}
local has_cjson, cjson = pcall(require, "cjson.safe")

-- A codec of our own, where lua-cjson is not installed.
local json = {}

local function escaped(c) return ("\\u%04x"):format(c:byte()) end

function json.encode(value)
  local kind = type(value)
  if kind == "string" then return '"' .. value:gsub('[%c"\\]', escaped) .. '"' end
  if kind ~= "table" then return tostring(value) end
  local out = {}
  if #value > 0 then
    for i = 1, #value do out[i] = json.encode(value[i]) end
    return "[" .. table.concat(out, ",") .. "]"
  end
  for key, it in pairs(value) do out[#out + 1] = json.encode(key) .. ":" .. json.encode(it) end
  return "{" .. table.concat(out, ",") .. "}"
end

local read

local function read_list(s, i)
  local list = {}
  while s:byte(i) ~= 93 do
    list[#list + 1], i = read(s, i)
    if s:byte(i) == 44 then i = i + 1 end
  end
  return list, i + 1
end

local function read_object(s, i)
  local object, key = {}, nil
  while s:byte(i) ~= 125 do
    key, i = read(s, i)
    object[key], i = read(s, i + 1)
    if s:byte(i) == 44 then i = i + 1 end
  end
  return object, i + 1
end

local words = { t = true, f = false }

function read(s, i)
  local c = s:sub(i, i)
  if c == "{" then return read_object(s, i + 1) end
  if c == "[" then return read_list(s, i + 1) end
  if c == '"' then
    local last = s:find('"', i + 1, true)
    return s:sub(i + 1, last - 1), last + 1
  end
  if words[c] ~= nil then return words[c], i + (words[c] and 4 or 5) end
  local number = s:match("^[-%d.eE+]+", i)
  return tonumber(number), i + #number
end

function json.decode(s) return (read(s, 1)) end

local codec = has_cjson and cjson or json

local document
do
  local items = {}
  for i = 1, 40 do
    items[i] = { id = i, name = "item " .. i, price = i * 1.5, tags = { "new", "tag" .. i % 5 }, stock = i % 2 == 0 }
  end
  document = codec.encode({ user = "somebody", items = items, total = 40 })
end

-- Read, changed and written again.
function M.json()
  local it = codec.decode(document)
  for _, item in ipairs(it.items) do item.price = item.price + 1 end
  it.total = #it.items
  return codec.encode(it)
end

-- A page out of a template that was compiled to a function.
local template = [[<html><title>{title}</title><ul>
{each}<li class="{class}"><a href="/{id}">{name}</a> {price}</li>
{end}</ul></html>]]

local function compile(text)
  local head, row, tail = text:match("^(.-){each}(.-){end}(.*)$")
  local function fill(part)
    return function(values) return (part:gsub("{(%w+)}", values)) end
  end
  local fill_head, fill_row = fill(head), fill(row)
  return function(page)
    local out = { fill_head(page) }
    for i, it in ipairs(page.rows) do out[i + 1] = fill_row(it) end
    out[#out + 1] = tail
    return table.concat(out)
  end
end

local render = compile(template)

function M.template()
  local rows = {}
  for i = 1, 60 do
    rows[i] = { class = i % 2 == 0 and "even" or "odd", id = i, name = "Thing " .. i, price = ("%.2f"):format(i * 1.1) }
  end
  return render({ title = "Things of " .. ngx.var.uri, rows = rows })
end

-- A tree of path segments with parameters, and middlewares around the handler, as gateways have.
local routes = {}

local function route(path, f)
  local node = routes
  for part in path:gmatch("[^/]+") do
    local name = part:match("^:(.*)")
    local key = name and ":" or part
    node[key] = node[key] or {}
    node = node[key]
    node.name = name
  end
  node.run = f
end

local function find(path)
  local node, values = routes, {}
  for part in path:gmatch("[^/]+") do
    local next = node[part]
    if not next and node[":"] then
      next = node[":"]
      values[next.name] = part
    end
    if not next then return nil end
    node = next
  end
  return node.run, values
end

for _, thing in ipairs({ "users", "orders", "items", "carts", "stores" }) do
  route("/api/" .. thing .. "/:id", function(v) return thing .. " " .. v.id end)
  route("/api/" .. thing .. "/:id/notes/:note", function(v) return thing .. " " .. v.id .. " " .. v.note end)
  route("/api/" .. thing .. "/search", function() return "search" end)
end

local function with_headers(next)
  return function(context)
    local headers = {}
    for name, value in pairs(ngx.req.get_headers()) do headers[name:lower()] = value end
    context.headers = headers
    return next(context)
  end
end

local function with_log(next)
  return function(context)
    local said = next(context)
    context.log = { path = context.path, at = ngx.now(), length = #said }
    return said
  end
end

local counter = 0
function M.routing()
  local out = {}
  for i = 1, 12 do
    counter = counter % 100000 + 1
    local path = ("/api/%s/%d/notes/%d"):format(i % 2 == 0 and "orders" or "stores", counter, i)
    local run, values = find(path)
    local serve = with_log(with_headers(function(context) return run(context.values) end))
    out[i] = serve({ path = path, values = values })
  end
  return table.concat(out, "\n")
end

-- A thousand records built and grouped per request, beside a cache of some MB whose entries come and go.
local cache, order, oldest = {}, {}, 1
function M.tables()
  local groups = {}
  for i = 1, 1000 do
    local record = { id = i, group = i % 20, at = { x = i, y = i * 2 } }
    local group = groups[record.group] or { sum = 0, list = {} }
    groups[record.group] = group
    group.sum = group.sum + record.at.x
    group.list[#group.list + 1] = record
  end
  counter = counter % 100000 + 1
  local key = "key" .. counter
  cache[key] = groups[counter % 20]
  order[#order + 1] = key
  if #order - oldest > 400 then
    cache[order[oldest]] = nil
    order[oldest] = false
    oldest = oldest + 1
  end
  return groups[3].sum
end

function M.codec() return has_cjson and "lua-cjson" or "pure Lua" end

return M
